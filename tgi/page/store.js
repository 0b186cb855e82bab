// What the page keeps in the browser, as JSON. Browsers may refuse it; then nothing is kept.

const PREFIX = "tgi.";

export function load(name, fallback = null) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + name)) ?? fallback;
  } catch {
    return fallback;
  }
}

export function save(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
  } catch { /* full, or forbidden */ }
}
