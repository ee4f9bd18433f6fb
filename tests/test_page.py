"""The page in a real browser, on a real engine; and the bulk job's report."""

import base64
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    FilePayload,
    Locator,
    Page,
    expect,
    sync_playwright,
)

from batch.report import write_report
from serving.auth import token_hash
from serving.door import HttpConfig
from shared.config import EngineConfig, ModelConfig
from shared.image_codec import read_provenance
from shared.model_names import BUNDLED_MODELS
from shared.renderer import Renderer
from shared.request import Provenance
from tests.bulk import plan_run, render
from tests.conftest import BIN
from tests.http_server import InProcess, http_server
from tests.small_models import small_stable_diffusion

CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    if "BROWSER_REQUIRED" in os.environ:
        raise RuntimeError("BROWSER_REQUIRED is set, and there is no Chromium")
    pytest.skip("apt-get install chromium", allow_module_level=True)

GOLD = BUNDLED_MODELS / "postcard" / "loras" / "gold.safetensors"
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def renderer() -> Iterator[Renderer]:
    with Renderer(ModelConfig(adapters={"gold": str(GOLD)}), EngineConfig()) as renderer:
        yield renderer


@pytest.fixture(scope="module")
def host(renderer: Renderer) -> Iterator[str]:
    with http_server(InProcess(renderer)) as host:
        yield host


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # As root, which containers often are, Chromium runs only without its sandbox.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, host: str) -> Iterator[Page]:
    """Small pictures of few steps; whatever the browser complains of fails the test."""
    context = browser.new_context()
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda said: complaints.extend(complaint(said)))
    page.on("request", lambda request: complaints.extend(foreign(request.url, host)))
    open_page(page, host)
    page.click("#settings summary")
    fill(page, width=64, height=64, num_inference_steps=4)
    yield page
    context.close()
    assert not complaints


def complaint(said: ConsoleMessage) -> list[str]:
    """Of a refusal that a test asked for, the browser tells as well."""
    is_one = said.type == "error" and "the server responded with a status of 4" not in said.text
    return [said.text] if is_one else []


def foreign(url: str, host: str) -> list[str]:
    return [] if url.startswith((host, "data:", "blob:")) else [url]


def open_page(page: Page, host: str) -> None:
    page.goto(host)
    expect(page.locator("#width")).not_to_have_value("")


def fill(page: Page, **fields: object) -> None:
    for name, value in fields.items():
        page.fill(f"#{name}", str(value))


def cards(page: Page, state: str = "done") -> Locator:
    return page.locator(f"#pictures [data-state={state}]")


def imagine(page: Page, number: int = 1) -> None:
    """Ask for pictures, and wait until there are so many in all."""
    page.click("#go")
    expect(cards(page)).to_have_count(number, timeout=60_000)


def provenance(card: Locator) -> Provenance:
    """What the picture says that is to be had from this card."""
    with card.page.expect_download() as download:
        card.get_by_text("Download").click()
    return read_provenance(Path(download.value.path()).read_bytes())


def drop(page: Page, name: str, data: bytes) -> None:
    page.evaluate(
        """([name, data]) => {
            const bytes = Uint8Array.from(atob(data), (sign) => sign.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], name, { type: "image/png" }));
            dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
        }""",
        [name, base64.b64encode(data).decode()],
    )


def png(side: int = 64) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (side, side), "navy").save(buffer, "PNG")
    return buffer.getvalue()


def test_a_picture_has_the_settings_of_the_form_and_stays(page: Page) -> None:
    fill(page, prompt="sand dunes, <neon>", negative_prompt="sea & sky", guidance_scale=3, seed=7)
    page.select_option("#scheduler", "DDIMScheduler")
    page.fill("#adapters input", "0.5")
    imagine(page)
    made = provenance(cards(page)).request
    assert made.prompt == "sand dunes, <neon>"
    assert (made.negative_prompt, made.guidance_scale, made.seed) == ("sea & sky", 3, 7)
    assert (made.width, made.height, made.num_inference_steps) == (64, 64, 4)
    assert (made.scheduler, made.lora) == ("DDIMScheduler", {"gold": 0.5})
    page.reload()
    expect(cards(page)).to_have_count(1)
    assert provenance(cards(page)).request == made


def test_several_pictures_have_successive_seeds_and_can_be_forgotten(page: Page) -> None:
    fill(page, seed=40)
    page.select_option("#count", "3")
    imagine(page, 3)
    assert [provenance(card).request.seed for card in cards(page).all()] == [40, 41, 42]
    page.reload()
    expect(cards(page)).to_have_count(3)
    assert [provenance(card).request.seed for card in cards(page).all()] == [40, 41, 42]
    cards(page).nth(1).get_by_text("Forget").click()
    expect(cards(page)).to_have_count(2)
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#forget")
    expect(page.locator("#no-pictures")).to_be_visible()
    page.reload()
    expect(page.locator("#no-pictures")).to_be_visible()


def test_a_seed_is_drawn_for_each_picture_unless_it_is_kept(page: Page) -> None:
    imagine(page, 1)
    imagine(page, 2)
    page.click("#lock")
    imagine(page, 3)
    third, second, first = (provenance(card).request.seed for card in cards(page).all())
    assert first != second == third
    page.click("#lock")
    page.click("#dice")
    drawn = int(page.input_value("#seed"))
    imagine(page, 4)
    assert provenance(cards(page).first).request.seed == drawn != third


def test_it_shows_steps_and_previews_and_can_be_given_up(page: Page, renderer: Renderer) -> None:
    fill(page, num_inference_steps=150, width=256, height=256)
    page.click("#go")
    card = cards(page, "running")
    expect(card.locator(".said")).to_contain_text("of 150", timeout=30_000)
    expect(card.locator("img")).to_have_attribute("alt", "A preview")
    before = renderer.counters().online.num_cancelled
    card.get_by_text("Cancel").click()
    expect(page.locator("#no-pictures")).to_be_visible()
    for _ in range(100):
        if renderer.counters().online.num_cancelled > before:
            return
        page.wait_for_timeout(100)
    raise AssertionError("it was not given up")


def test_a_wrong_field_is_named_and_ready_to_be_mended(page: Page) -> None:
    fill(page, num_inference_steps=1000)
    page.click("#settings summary")
    page.click("#go")
    expect(page.locator("#status")).to_have_text("Steps: must be at most 150")
    expect(page.locator("#num_inference_steps")).to_be_focused()
    expect(page.locator("#num_inference_steps")).to_have_attribute("aria-invalid", "true")
    fill(page, num_inference_steps=4)
    expect(page.locator("[aria-invalid]")).to_have_count(0)
    expect(page.locator("#status")).to_be_empty()
    imagine(page)


def test_what_is_to_be_mended_can_be_read_while_others_are_done(page: Page) -> None:
    page.click("#go")
    fill(page, num_inference_steps=999)
    page.click("#go")
    expect(cards(page)).to_have_count(1, timeout=30_000)
    expect(page.locator("#status")).to_have_text("Steps: must be at most 150")


def test_a_long_prompt_is_cut_on_its_card_and_by_the_model_which_is_said(page: Page) -> None:
    fill(page, prompt="dunes and sea " * 140)
    imagine(page)
    expect(cards(page)).to_contain_text(re.compile(r"prompt cut by \d+ tokens"))
    box = cards(page).bounding_box()
    assert box is not None
    assert box["height"] < 600


def test_focus_stays_with_a_picture_that_is_done(page: Page) -> None:
    fill(page, num_inference_steps=100)  # so that a slow browser sees it run
    page.click("#go")
    cards(page, "running").get_by_text("Cancel").focus()
    expect(cards(page)).to_have_count(1, timeout=60_000)
    expect(cards(page).get_by_role("button").first).to_be_focused()


def test_a_picture_made_here_brings_its_settings_back(page: Page) -> None:
    fill(page, prompt="a lighthouse", seed=5, negative_prompt="fog")
    imagine(page)
    with page.expect_download() as download:
        cards(page).get_by_text("Download").click()
    data = Path(download.value.path()).read_bytes()
    page.reload()
    expect(page.locator("#width")).not_to_have_value("")
    drop(page, "mine.png", data)
    expect(page.locator("#prompt")).to_have_value("a lighthouse")
    expect(page.locator("#status")).to_contain_text("Its settings are back in the form. ")
    imagine(page, 2)
    first, second = (provenance(card) for card in cards(page).all())
    assert first == second


def test_any_other_picture_is_one_to_start_from(page: Page) -> None:
    files: list[FilePayload] = [{"name": "a.png", "mimeType": "image/png", "buffer": png(80)}]
    page.set_input_files("#file", files)
    expect(page.locator("#start")).to_be_visible()
    imagine(page)
    made = provenance(cards(page)).request
    assert made.model_dump()["strength"] == 0.8
    assert (made.width, made.height) == (80, 80)
    page.get_by_text("Remove it").click()
    imagine(page, 2)
    assert "strength" not in provenance(cards(page).first).request.model_dump()
    # With its settings comes what it was made from.
    cards(page).nth(1).get_by_text("Reuse").click()
    expect(page.locator("#start")).to_be_visible()
    imagine(page, 3)
    assert provenance(cards(page).first).request == made


def test_what_is_no_picture_is_told_at_once(page: Page) -> None:
    drop(page, "text.png", b"only named so")
    expect(page.locator("#status")).to_have_text("That is no PNG, JPEG or WebP picture.")
    expect(page.locator("#start")).to_be_hidden()


def test_code_of_an_emptied_field_says_its_default(page: Page) -> None:
    fill(page, prompt="", height="", width="")
    page.click("#code summary")
    page.click("#tab-openai")
    expect(page.locator("#snippet")).to_contain_text('size="256x256"')
    expect(page.locator("#snippet")).to_contain_text('prompt=""')


@pytest.mark.parametrize("is_edit", [False, True], ids=["new", "edit"])
@pytest.mark.parametrize("language", ["curl", "requests", "openai"])
def test_the_code_that_it_shows_gives_the_same_picture(
    page: Page, language: str, is_edit: bool, tmp_path: Path
) -> None:
    fill(page, prompt='it\'s a "$HOME" of snow \\ ice, é', seed=11)
    page.fill("#adapters input", "0.5")
    if is_edit:
        drop(page, "a.png", png())
        (tmp_path / "picture.png").write_bytes(png())
    imagine(page)
    page.click("#code summary")
    page.click(f"#tab-{language}")
    code = page.inner_text("#snippet")
    command = ["bash", "-c", code] if language == "curl" else [sys.executable, "-c", code]
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=60)
    given = (tmp_path / ("out.png" if is_edit else "picture.png")).read_bytes()
    assert read_provenance(given) == provenance(cards(page))


def test_it_can_be_used_by_keyboard(page: Page) -> None:
    page.focus("#prompt")
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Enter")
    expect(cards(page)).to_have_count(1, timeout=60_000)
    page.focus("#code summary")
    page.keyboard.press("Enter")
    page.focus("#tab-curl")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#tab-openai")).to_be_focused()
    expect(page.locator("#snippet")).to_contain_text("from openai import OpenAI")


def test_the_engine_is_seen_at_work(page: Page, host: str) -> None:
    bulk = {"prompt": "a", "num_inference_steps": 150}
    headers = {"X-Priority": "bulk"}
    with requests.post(f"{host}/imagine/events", json=bulk, headers=headers, stream=True):
        page.click("nav a[href='#engine']")
        counters, batch = (page.locator("#engines table").nth(i) for i in range(2))
        expect(batch.get_by_role("row")).to_contain_text("of 150", timeout=30_000)
        expect(counters.locator("tr", has_text="bulk").locator("td").first).to_have_text("1")
        expect(page.locator(".strip rect[fill='url(#stripes)']").first).to_be_attached()
    expect(page.get_by_text("Nothing in the batch")).to_be_visible()  # it was given up


def test_many_at_once_leave_room_to_look(page: Page) -> None:
    fill(page, num_inference_steps=150, width=256, height=256)
    page.select_option("#count", "4")
    page.click("#go")
    page.click("#go")
    expect(cards(page, "running").filter(has_text="of 150")).to_have_count(4, timeout=30_000)
    page.click("nav a[href='#engine']")
    online = page.locator("#engines tr", has_text="online").first
    expect(online.locator("td").first).to_have_text("4")
    page.click("nav a[href='#create']")
    while cards(page, "running").count():
        cards(page, "running").last.get_by_text("Cancel").click()
    expect(page.locator("#no-pictures")).to_be_visible()


def test_each_model_has_its_form(browser: Browser, renderer: Renderer, tmp_path: Path) -> None:
    small_stable_diffusion().save_pretrained(tmp_path / "small")
    config = ModelConfig(name=str(tmp_path / "small"))
    with (
        Renderer(config, EngineConfig()) as other,
        http_server(InProcess(renderer), None, InProcess(other)) as host,
    ):
        page = browser.new_page()
        open_page(page, host)
        page.click("#settings summary")
        fill(page, width=64, height=64, num_inference_steps=2)
        page.select_option("#scheduler", "DDIMScheduler")
        page.fill("#adapters input", "0.7")
        imagine(page, 1)
        page.select_option("#model", "small")
        expect(page.locator("#adapters")).to_be_hidden()
        expect(page.locator("#scheduler")).to_have_value("DDIMScheduler")  # which both have
        imagine(page, 2)
        assert [provenance(card).model for card in cards(page).all()] == ["small", "postcard"]
        cards(page).last.get_by_text("Reuse").click()
        expect(page.locator("#model")).to_have_value("postcard")
        expect(page.locator("#adapters input")).to_have_value("0.7")
        page.close()


def test_what_was_chosen_stays_when_the_model_is_asked_for_anew(page: Page) -> None:
    page.select_option("#scheduler", "DDIMScheduler")
    page.fill("#adapters input", "0.7")
    page.evaluate("document.querySelector('#scheduler').firstElementChild.id = 'old'")
    page.dispatch_event("#model", "change")
    expect(page.locator("#old")).to_have_count(0)  # the menu is made anew
    expect(page.locator("#scheduler")).to_have_value("DDIMScheduler")
    expect(page.locator("#adapters input")).to_have_value("0.7")


def test_a_service_with_a_token_asks_for_it(browser: Browser, renderer: Renderer) -> None:
    config = HttpConfig(token_hashes=(token_hash("secret"),))
    with http_server(InProcess(renderer), config) as host:
        page = browser.new_page()
        page.goto(host)
        expect(page.locator("#token")).to_be_focused()
        for wrong in ("guess", "wörng ✓"):
            page.fill("#token", wrong)
            page.keyboard.press("Enter")
            expect(page.locator("#status")).to_have_text("this is no token of this service")
            expect(page.locator("#token")).to_be_focused()
        page.fill("#token", "secret")
        page.keyboard.press("Enter")
        expect(page.locator("#width")).to_have_value("256")
        expect(page.locator("#token")).to_be_hidden()
        expect(page.locator("#prompt")).to_be_focused()
        page.click("#settings summary")
        fill(page, width=64, height=64, num_inference_steps=2)
        imagine(page)
        page.close()


def test_a_service_that_is_gone_is_told_in_plain_words(
    browser: Browser, renderer: Renderer
) -> None:
    page = browser.new_page()
    with http_server(InProcess(renderer)) as host:
        open_page(page, host)
        page.click("nav a[href='#engine']")
        expect(page.locator("#engines table").first).to_be_visible()
        page.click("nav a[href='#create']")
    page.click("#go")
    expect(cards(page, "failed")).to_contain_text("The service does not answer.")
    expect(cards(page, "failed")).to_contain_text("twin peaks")
    page.click("nav a[href='#engine']")
    expect(page.locator("#engine-status")).to_have_text("The service does not answer.")
    expect(page.locator("#engines table")).to_have_count(0)
    page.close()


def test_a_page_that_was_opened_too_early_fills_itself(browser: Browser, host: str) -> None:
    page = browser.new_page()
    page.route("**/v1/models?", lambda route: route.abort(), times=1)
    page.goto(host)
    expect(page.locator("#status")).to_have_text("The service does not answer.")
    expect(page.locator("#width")).to_have_value("256", timeout=10_000)
    expect(page.locator("#status")).to_be_empty()
    page.close()


@pytest.mark.parametrize("view", ["create", "engine"])
@pytest.mark.parametrize("colours", ["light", "dark"])
def test_it_is_accessible_and_fits_a_phone(page: Page, view: str, colours: str) -> None:
    page.emulate_media(color_scheme=colours)
    drop(page, "a.png", png())
    imagine(page)
    page.click("#code summary")
    page.click(f"nav a[href='#{view}']")
    if view == "engine":
        expect(page.locator(".strip")).to_be_visible()
    check_for_people(page)


def test_the_reference_takes_no_file_from_elsewhere(page: Page, host: str) -> None:
    page.goto(host + "/docs")
    expect(page.get_by_text("/v1/images/generations").first).to_be_visible()


def test_the_report_is_accessible_and_fits_a_phone(browser: Browser, tmp_path: Path) -> None:
    plan, output = plan_run(tmp_path, {"prompt": ["a", "fail <this>", "", "peaks " * 50]})
    with ThreadPoolExecutor(1) as thread:  # Playwright has an event loop in this one
        thread.submit(render, plan, output, plan.shards).result()
    write_report(plan, output)
    page = browser.new_page()
    page.goto((tmp_path / "out" / "report.html").as_uri())
    check_for_people(page)
    page.close()


def check_for_people(page: Page) -> None:
    """axe-core has nothing to say of it, and nothing sticks out on a phone."""
    found = Axe().run(page).response["violations"]
    assert not [(each["id"], each["impact"], each["nodes"][0]["html"]) for each in found]
    page.set_viewport_size(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
