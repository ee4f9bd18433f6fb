// What all parts of the page need of the document.

export const $ = (id) => document.getElementById(id);

export function button(text, act) {
  const made = Object.assign(document.createElement("button"), { type: "button", textContent: text });
  made.addEventListener("click", act);
  return made;
}

/** Whether a menu offers this value. */
export const hasOption = (select, value) => [...select.options].some((option) => option.value === value);
