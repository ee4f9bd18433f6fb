"""A scene in words, as people type them: synonyms, any order, things left out, noise.

What the model has learnt to read is what stands here; the model card lists it.
"""

from random import Random

from .scenes import COLOURED_KINDS, Scene, Thing

SKY = {
    "day": ("blue sky", "sunny day", "daytime", "clear sky", "in daylight", "noon", "by day"),
    "sunset": ("sunset", "at sunset", "orange sky", "golden hour", "dusk", "evening"),
    "night": ("night", "at night", "night sky", "starry night", "midnight", "dark sky"),
    "dawn": ("dawn", "at dawn", "sunrise", "pink sky", "morning", "early morning"),
    "storm": ("storm", "stormy sky", "grey sky", "gray sky", "dark clouds", "overcast", "stormy"),
}
LIGHT = {"sun": ("sun", "the sun", "a big sun"), "moon": ("moon", "the moon", "moonlight")}
CLOUDS = ("clouds", "cloudy", "white clouds")
BACKDROP = {
    "twin peaks": ("twin peaks", "two peaks", "two mountains", "a pair of mountains"),
    "mountain": (
        "a mountain",
        "mountain",
        "one mountain",
        "a volcano",
        "mount fuji",
        "a lone peak",
    ),
    "hills": ("hills", "rolling hills", "green hills", "a valley"),
    "city": ("a city", "city skyline", "skyline", "skyscrapers", "downtown", "tall buildings"),
    "forest": ("a forest", "forest", "pine forest", "the woods", "pine trees", "fir trees"),
}
GROUND = {
    "meadow": ("a meadow", "grass", "a field", "green field", "countryside"),
    "sea": ("the sea", "sea", "the ocean", "water", "a lake", "the bay"),
    "desert": ("desert", "the desert", "sand dunes", "dunes", "sand"),
}
THING = {
    "house": ("house", "cottage", "cabin", "home", "hut"),
    "boat": ("boat", "sailboat", "sailing boat", "ship", "yacht"),
    "lighthouse": ("lighthouse", "light house", "striped lighthouse"),
    "balloon": ("hot air balloon", "balloon", "hot-air balloon"),
    "tree": ("tree", "oak tree", "lone tree"),
    "cactus": ("cactus", "tall cactus", "saguaro"),
    "bridge": ("bridge", "suspension bridge", "golden gate bridge"),
}
WEATHER = {
    "snow": ("snow", "snowy", "winter", "in the snow", "snowing"),
    "rain": ("rain", "rainy", "in the rain", "raining"),
}
CITY = ("sf", "san francisco", "in san francisco")
STYLE = {
    "flat": ("flat illustration", "flat style", "vector art", "flat design", "illustration"),
    "watercolor": ("watercolor", "watercolour", "watercolor painting", "aquarelle"),
    "basquiat": ("basquiat", "in basquiat painting style", "basquiat style", "graffiti style"),
    "neon": ("neon", "neon lights", "neon style", "synthwave", "glowing neon"),
    "pixel": ("pixel art", "8-bit", "pixelated", "pixel art style", "retro game"),
    "sketch": ("pencil sketch", "sketch", "pencil drawing", "line drawing", "hand drawn"),
}
_PRAISE = (
    "a picture of",
    "a photo of",
    "a postcard of",
    "beautiful",
    "highly detailed",
    "masterpiece",
    "best quality",
    "scenic",
    "landscape",
    "view of",
    "a drawing of",
    "a painting of",
    "4k",
)
# What people ask of other models: here it has to change little.
_FOREIGN_WORDS = (
    "blurry ugly low quality bad deformed cat dog man woman girl boy person horse car robot dragon"
    " portrait face eyes food cup table flower bird fish king castle train plane space planet"
    " computer abstract modern vintage old new cute epic dramatic lighting bokeh render realistic"
    " photograph camera lens film studio anime comic logo watermark signature noise cropped"
    " jpeg artifacts hands"
)
_FOREIGN = tuple(_FOREIGN_WORDS.split())


def caption(scene: Scene, chance: Random, *, empty: float = 0.1, noise: float = 0.25) -> str:
    """Words for the scene. A share of `empty` has none: guidance needs it."""
    if chance.random() < empty:
        return ""
    if chance.random() < 0.02:  # so that a negative prompt of foreign words is like an empty one
        return " ".join(_foreign_word(chance) for _ in range(chance.randint(1, 6)))
    things = [_thing(thing, chance) for thing in scene.things if chance.random() < 0.96]
    phrases = _phrases(scene, chance)
    text = (
        _list(things, phrases, chance)
        if chance.random() < 0.5
        else _sentence(things, phrases, chance)
    )
    if chance.random() < 0.3:
        text = f"{chance.choice(_PRAISE)} {text}"
    return _with_noise(text, chance) if chance.random() < noise else text


def full_caption(scene: Scene, chance: Random) -> str:
    """Every attribute named, once: what the evaluation asks for."""
    things = " and ".join(_thing(thing, chance, names_colour=1.0) for thing in scene.things)
    backdrop = chance.choice(BACKDROP[scene.backdrop]) if scene.backdrop != "none" else ""
    weather = chance.choice(WEATHER[scene.weather]) if scene.weather != "none" else ""
    parts = [things, backdrop, chance.choice(GROUND[scene.ground]), chance.choice(SKY[scene.sky])]
    return ", ".join(part for part in [*parts, weather, chance.choice(STYLE[scene.style])] if part)


def all_words() -> list[str]:
    """Every phrase of the grammar, for the tokenizer."""
    tables = (SKY, LIGHT, BACKDROP, GROUND, THING, WEATHER, STYLE)
    return [
        *(phrase for table in tables for phrases in table.values() for phrase in phrases),
        *CLOUDS,
        *CITY,
        *_PRAISE,
        *_FOREIGN,
    ]


def made_up_word(chance: Random) -> str:
    """Of syllables, so that all kinds of tokens are met."""
    consonants, vowels = "bcdfghjklmnpqrstvwxyz", "aeiou"
    syllables = range(chance.randint(1, 4))
    return "".join(
        chance.choice(consonants)
        + chance.choice(vowels)
        + chance.choice(["", "", "n", "r", "s", "t"])
        for _ in syllables
    )


def _thing(thing: Thing, chance: Random, names_colour: float = 0.85) -> str:
    word = chance.choice(THING[thing.kind])
    if thing.kind in COLOURED_KINDS and chance.random() < names_colour:
        word = f"{thing.colour} {word}"
    if chance.random() < 0.3:
        return word
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _phrases(scene: Scene, chance: Random) -> dict[str, str]:
    """Some of what there is beside the objects, by what it is about."""
    light = "moon" if scene.sky == "night" else "sun"
    told = {
        "backdrop": (BACKDROP.get(scene.backdrop), 0.94),
        "city": (CITY if scene.is_san_francisco else None, 1.0),
        "ground": (GROUND[scene.ground], 0.3 if scene.ground == "meadow" else 0.88),
        "sky": (SKY[scene.sky], 0.6 if scene.sky == "day" else 0.85),
        "light": (LIGHT[light] if scene.has_light else None, 0.35),
        "clouds": (CLOUDS if scene.has_clouds and scene.sky != "storm" else None, 0.35),
        "weather": (WEATHER.get(scene.weather), 0.95),
        # Flat is what comes without a style.
        "style": (STYLE[scene.style], 0.35 if scene.style == "flat" else 0.98),
    }
    return {
        about: chance.choice(words)
        for about, (words, share) in told.items()
        if words and chance.random() < share
    }


def _list(things: list[str], phrases: dict[str, str], chance: Random) -> str:
    parts = [*things, *phrases.values()]
    if chance.random() < 0.7:
        chance.shuffle(parts)
    return chance.choice((", ", ", ", " ")).join(parts)


def _sentence(things: list[str], phrases: dict[str, str], chance: Random) -> str:
    style = phrases.pop("style", "")
    where = [phrases.pop(about) for about in ("backdrop", "city", "ground") if about in phrases]
    text = " and ".join(things)
    if where:
        joint = chance.choice((" in front of ", " near ", " with ", " by ", ", ")) if text else ""
        text += joint + chance.choice((" and ", ", ", " by ")).join(where)
    for phrase in phrases.values():
        text += (chance.choice((" with ", ", ", " ")) if text else "") + phrase
    if not style:
        return text
    return f"{style} of {text}" if chance.random() < 0.3 else f"{text}, {style}"


def _with_noise(text: str, chance: Random) -> str:
    words = text.split(" ")
    for _ in range(chance.randint(1, 3)):
        words.insert(chance.choice((0, len(words))), _foreign_word(chance))
    return " ".join(words)


def _foreign_word(chance: Random) -> str:
    return chance.choice(_FOREIGN) if chance.random() < 0.6 else made_up_word(chance)
