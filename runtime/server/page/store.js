// What the browser keeps: conversations, each under a key of its own so that saving one writes only that, and settings.
// A full or forbidden storage costs the keeping alone: the page goes on in memory and says so once.

import { notify } from "./dom.js";

const CONVERSATION = "dsv3c.conversation.";
const SETTINGS = "dsv3c.settings";

const memory = new Map();
let told = false;

function read(name) {
  if (memory.has(name)) return memory.get(name);
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

function write(name, text) {
  try {
    localStorage.setItem(name, text);
    memory.delete(name);
    told = false;
  } catch (error) {
    memory.set(name, text);
    if (told) return;
    told = true;
    notify(
      error.name === "QuotaExceededError"
        ? "The browser's storage is full: what is new is kept only while this page is open. Delete some conversations."
        : "The browser keeps nothing for this page: conversations last only while it is open.",
    );
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Names and dates of all conversations, the latest first. */
export function list() {
  const names = new Set(memory.keys());
  try {
    for (const name of Object.keys(localStorage)) names.add(name);
  } catch {
    // Those in memory are all there are.
  }
  return [...names]
    .filter((name) => name.startsWith(CONVERSATION))
    .map((name) => parsed(read(name)))
    .filter((found) => found && found.id && found.nodes)
    .map(({ id, title, updated }) => ({ id, title, updated }))
    .sort((one, other) => other.updated - one.updated);
}

export const load = (id) => parsed(read(CONVERSATION + id));

export const save = (data) => write(CONVERSATION + data.id, JSON.stringify(data));

export function remove(id) {
  memory.delete(CONVERSATION + id);
  try {
    localStorage.removeItem(CONVERSATION + id);
  } catch {
    // It was in memory alone.
  }
}

export const settings = () => parsed(read(SETTINGS)) ?? {};

export const saveSettings = (changes) => write(SETTINGS, JSON.stringify({ ...settings(), ...changes }));

export function setTheme(name) {
  try {
    if (name) localStorage.setItem("dsv3c.theme", name);
    else localStorage.removeItem("dsv3c.theme");
  } catch {
    // It holds while the page is open.
  }
}

/** Another tab changed something. */
export function onChange(act) {
  addEventListener("storage", (event) => {
    if (!event.key || event.key.startsWith(CONVERSATION)) act();
  });
}
