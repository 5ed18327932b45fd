// The page: which conversation, model, mode and panel are shown.

import * as api from "./api.js";
import { Chat } from "./chat.js";
import { Completion } from "./completion.js";
import { Conversation } from "./conversation.js";
import { byId, count, el, notify } from "./dom.js";
import { Experts } from "./experts.js";
import { Machine } from "./machine.js";
import { Parameters } from "./parameters.js";
import * as store from "./store.js";

const WIDE = matchMedia("(min-width: 60rem)");
const PANELS = ["parameters", "experts", "machine"];

const parameters = new Parameters(byId("parameters"));
const experts = new Experts(byId("experts"));
const model = byId("model");
const hooks = {
  model: () => model.value,
  parameters: (mode) => parameters.request(mode),
  saved: listConversations,
  stream: (path, body, signal) => experts.stream(path, body, signal),
  unauthorized: askForKey,
  hasField: (name) => parameters.has(name),
  showField,
};
const machine = new Machine(byId("machine"), hooks);
const chat = new Chat(hooks);
const completion = new Completion(hooks);

// ---- conversations

function listConversations() {
  const current = chat.conversation.id;
  byId("conversation-list").replaceChildren(...store.list().map(({ id, title }) => listed(id, title, id === current)));
  document.title = chat.conversation.title ? `${chat.conversation.title} · dsv3c` : "dsv3c";
}

function listed(id, title, current) {
  const button = (what, text, how) => el(what, { type: "button", ...how }, text);
  const opens = { "aria-current": current ? "true" : null, onclick: () => openConversation(id) };
  const drops = { "aria-label": `Delete “${title}”`, title: "Delete", onclick: () => dropConversation(id, drop) };
  const drop = button("button.plain.drop", "×", drops);
  return el("li", {}, button("button.open", title || "Untitled", opens), drop);
}

function openConversation(id) {
  const running = chat.running?.conversation;
  show(running?.id === id ? running : new Conversation(store.load(id) ?? {}));
}

function show(conversation) {
  chat.show(conversation);
  listConversations();
  setMode("chat");
  if (!WIDE.matches) close("conversations");
  byId("entry").focus();
}

/** A second press deletes. */
function dropConversation(id, button) {
  if (!button.classList.contains("sure")) {
    button.classList.add("sure");
    button.textContent = "Delete";
    button.addEventListener("blur", listConversations, { once: true });
    return;
  }
  if (chat.running?.conversation.id === id) chat.stop();
  store.remove(id);
  if (chat.conversation.id === id) show(new Conversation());
  else listConversations();
}

// ---- models

async function loadModels() {
  let found;
  try {
    found = (await api.get("v1/models")).data;
  } catch (error) {
    if (error.status === 401) askForKey();
    else notify(`${error.message} ${error.hint ?? ""}`);
    return;
  }
  const chosen = model.value || store.settings().model;
  model.replaceChildren(...found.map(({ id }) => el("option", { value: id }, id)));
  if (found.some(({ id }) => id === chosen)) model.value = chosen;
  await describeModel();
}

async function describeModel() {
  byId("welcome-name").textContent = model.value;
  byId("welcome-facts").textContent = "";
  let props;
  try {
    props = await api.get(`props?model=${encodeURIComponent(model.value)}`);
  } catch {
    return; // the page goes without
  }
  const settings = props.default_generation_settings ?? {};
  parameters.setDefaults(settings.params ?? settings);
  const context = settings.n_ctx ?? props.n_ctx;
  const places = props.total_slots;
  const facts = [context ? `${count(context)} tokens of context` : null, places ? `${places} places` : null];
  const chats = props.chat_template !== "" && props.chat_template !== null;
  if (!chats) facts.push("no chat template: it completes texts");
  byId("welcome-facts").textContent = facts.filter(Boolean).join(" · ");
  if (!chats && chat.conversation.empty) setMode("complete");
}

function askForKey() {
  openSide("inspector");
  showPanel("parameters");
  parameters.keyed.hidden = false;
  parameters.key.focus();
  const wrong = "The API key is not one of this server's.";
  notify(api.getKey() ? wrong : "The server asks for an API key. Enter it under Parameters.");
}

function showField(name) {
  openSide("inspector");
  showPanel("parameters");
  parameters.focus(name);
}

// ---- what is shown

function setMode(mode) {
  for (const name of ["chat", "complete"]) byId(name).hidden = name !== mode;
  document.querySelector(`input[name="mode"][value="${mode}"]`).checked = true;
  parameters.setMode(mode);
}

const opener = (id) => document.querySelector(`[data-opens="${id}"]`);

function openSide(id) {
  if (!WIDE.matches) for (const other of ["conversations", "inspector"]) if (other !== id) close(other);
  document.body.classList.add(`with-${id}`);
  opener(id).setAttribute("aria-expanded", "true");
  cover(!WIDE.matches);
  if (!WIDE.matches) byId(id).querySelector("button").focus();
  if (id === "inspector") watchMachine();
}

/** What lies below an open side cannot be reached. */
function cover(whether) {
  byId("veil").hidden = !whether;
  document.querySelector("main").inert = whether;
}

function close(id) {
  document.body.classList.remove(`with-${id}`);
  opener(id).setAttribute("aria-expanded", "false");
  cover(false);
  if (id === "inspector") watchMachine();
}

const isOpen = (id) => document.body.classList.contains(`with-${id}`);

function showPanel(name) {
  for (const each of PANELS) {
    const tab = byId(`tab-${each}`);
    tab.setAttribute("aria-selected", String(each === name));
    tab.tabIndex = each === name ? 0 : -1;
    byId(each).hidden = each !== name;
  }
  watchMachine();
}

function watchMachine() {
  machine.watch(isOpen("inspector") && !byId("machine").hidden);
}

function switchTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const root = document.documentElement;
  const now = root.dataset.theme ?? (dark ? "dark" : "light");
  const next = now === "dark" ? "light" : "dark";
  // Back at what the system says, it follows the system again.
  const chosen = (next === "dark") === dark ? null : next;
  if (chosen) root.dataset.theme = chosen;
  else delete root.dataset.theme;
  store.setTheme(chosen);
  experts.draw();
}

/** Esc closes what lies above the page, or else stops what comes. */
function escape() {
  const above = ["inspector", "conversations"].find((id) => !WIDE.matches && isOpen(id));
  if (above) {
    close(above);
    opener(above).focus();
    return;
  }
  completion.hide();
  chat.stop();
  completion.stop();
}

// ---- beginning

for (const button of document.querySelectorAll("[data-opens]")) {
  const id = button.dataset.opens;
  button.addEventListener("click", () => (isOpen(id) ? close(id) : openSide(id)));
}
for (const button of document.querySelectorAll("[data-closes]")) {
  button.addEventListener("click", () => {
    close(button.dataset.closes);
    opener(button.dataset.closes).focus();
  });
}
byId("veil").addEventListener("click", () => ["conversations", "inspector"].forEach(close));
byId("new").addEventListener("click", () => show(new Conversation()));
byId("theme").addEventListener("click", switchTheme);
model.addEventListener("change", () => {
  store.saveSettings({ model: model.value });
  describeModel();
});
for (const input of document.querySelectorAll('input[name="mode"]')) {
  input.addEventListener("change", () => setMode(input.value));
}
for (const name of PANELS) {
  const tab = byId(`tab-${name}`);
  tab.addEventListener("click", () => showPanel(name));
  tab.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    const next = PANELS[(PANELS.indexOf(name) + by + PANELS.length) % PANELS.length];
    showPanel(next);
    byId(`tab-${next}`).focus();
  });
}
parameters.key.addEventListener("change", () => {
  api.setKey(parameters.key.value);
  loadModels();
});
addEventListener("keydown", (event) => event.key === "Escape" && escape());
WIDE.addEventListener("change", () => {
  if (WIDE.matches) openSide("conversations");
  else ["conversations", "inspector"].forEach(close);
});
store.onChange(() => listConversations());

if (WIDE.matches) openSide("conversations");
const [latest] = store.list();
chat.show(new Conversation(latest ? store.load(latest.id) : {}));
listConversations();
loadModels();
byId("entry").focus();
