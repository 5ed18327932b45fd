// Elements without markup: every text becomes a text node, so nothing that a model or a server says is ever parsed.

/** `el("button.plain", {type: "button", onclick: run}, "Run")`; attributes that are null or false are left out. */
export function el(what, attributes = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const node = document.createElement(tag);
  if (classes.length) node.className = classes.join(" ");
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Tell it to who cannot see it. */
export function announce(text) {
  byId("status").textContent = text;
}

/** A note at the bottom that goes by itself, for what needs no decision. */
export function notify(text) {
  const note = byId("note");
  note.textContent = text;
  note.hidden = false;
  clearTimeout(notify.timer);
  notify.timer = setTimeout(() => (note.hidden = true), 8000);
}

/** Whoever looks at the end of `area` goes on looking at it. */
export function follow(area, change) {
  const atEnd = area.scrollHeight - area.scrollTop - area.clientHeight < 60;
  change();
  if (atEnd) area.scrollTop = area.scrollHeight;
}

export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    notify("The browser does not allow copying here. Select the text instead.");
    return;
  }
  const before = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = before), 1500);
}

const PACE = 50; // ms

/** Draws with a frame soon after it was called, and not more often than one sees: the machine that draws may be the one
 * that computes the answer. */
export function paced(draw) {
  let due = null;
  let last = 0;
  const now = () => {
    due = null;
    last = performance.now();
    draw();
  };
  return () => {
    due ??= setTimeout(() => requestAnimationFrame(now), Math.max(0, last + PACE - performance.now()));
  };
}

/** As high as its text, up to what the style allows. */
export function fit(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + area.offsetHeight - area.clientHeight}px`;
}

const NUMBER = new Intl.NumberFormat("en");

export const count = (value) => NUMBER.format(value);

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  for (; value >= 1000 && at < units.length - 1; at += 1) value /= 1000;
  return `${value >= 100 || at === 0 ? Math.round(value) : value.toFixed(1)} ${units[at]}`;
}

export function seconds(value) {
  if (value >= 1) return `${value.toFixed(1)} s`;
  return value >= 0.01 ? `${Math.round(value * 1000)} ms` : `${(value * 1000).toFixed(1)} ms`;
}

export const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
