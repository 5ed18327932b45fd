// How answers are made: a row a parameter. An empty field is left out of the request, which leaves it to the model.

import * as api from "./api.js";
import { el, fit } from "./dom.js";
import * as store from "./store.js";

/** kind: number, integer, flag, lines, json, schema, text. only: the mode that has it. otherwise: what an empty field
 * sends. */
const GROUPS = [
  ["Drawing", true, [
    ["temperature", "number", { min: 0, step: 0.1, help: "0 takes the likeliest token; higher is more varied" }],
    ["top_p", "number", { min: 0, max: 1, step: 0.05, help: "only the likeliest tokens with this share together" }],
    ["top_k", "integer", { min: 0, help: "only this many of the likeliest tokens; 0 is off" }],
    ["min_p", "number", { min: 0, max: 1, step: 0.01, help: "only tokens with this part of the best probability" }],
    ["typical_p", "number", { min: 0, max: 1, step: 0.05, help: "only tokens about as surprising as expected" }],
    ["seed", "integer", { min: 0, help: "the same seed draws the same answer" }],
  ]],
  ["Length", true, [
    ["max_completion_tokens", "integer", { min: 1, only: "chat", help: "tokens of an answer at most" }],
    ["max_tokens", "integer", { min: 1, only: "complete", otherwise: 128, help: "tokens to add at most" }],
    ["stop", "lines", { help: "texts that end the answer, one a line" }],
    ["min_tokens", "integer", { min: 0, help: "tokens before the answer may end" }],
    ["max_time", "number", { min: 0, step: 1, help: "seconds after which it ends" }],
    ["ignore_eos", "flag", { help: "go on where the model would end" }],
  ]],
  ["Repetition", false, [
    ["repetition_penalty", "number", { min: 0, step: 0.05, help: "above 1, tokens of the text become less likely" }],
    ["frequency_penalty", "number", { step: 0.1, help: "less likely with each time a token was said" }],
    ["presence_penalty", "number", { step: 0.1, help: "less likely once a token was said" }],
    ["no_repeat_ngram_size", "integer", { min: 0, help: "so many tokens in a row come once only; 0 is off" }],
  ]],
  ["Form of the answer", false, [
    ["response_format", "schema", { help: "a JSON schema that the answer follows" }],
    ["grammar", "text", { help: "a grammar in Lark's notation" }],
    ["regex", "text", { help: "a regular expression" }],
    ["logit_bias", "json", { help: "by token id, what its logit gains: {\"42\": -1.5}" }],
    ["chat_template_kwargs", "json", { only: "chat", help: "for the chat template: {\"thinking\": true}" }],
  ]],
];
const ROWS = GROUPS.flatMap(([, , rows]) => rows);
const NARROW = new Set(["number", "integer"]);

export class Parameters {
  constructor(panel) {
    const said = store.settings();
    this.values = said.parameters ?? {};
    this.inputs = new Map();
    const before = "What the model is told before the conversation";
    this.system = el("textarea", { id: "system", rows: "3", placeholder: before });
    this.system.value = said.system ?? "";
    this.system.addEventListener("input", () => {
      fit(this.system);
      store.saveSettings({ system: this.system.value });
    });
    this.key = el("input", { id: "key", type: "password", autocomplete: "off", spellcheck: "false" });
    this.key.value = api.getKey();
    const kept = el("p.fine", {}, "Kept for this tab alone, sent to this server alone.");
    this.keyed = el("form.field", {}, el("label", { for: "key" }, "API key"), this.key, kept);
    this.keyed.hidden = !api.getKey();
    this.keyed.addEventListener("submit", (event) => {
      event.preventDefault();
      this.key.blur(); // which makes it count
    });
    this.reset = el("button.plain", { type: "button", onclick: () => this.clear() }, "Leave all to the model");
    panel.append(
      el("div.field", {}, el("label", { for: "system" }, "System prompt"), this.system),
      ...GROUPS.map((group) => this.group(group)),
      el("div.actions", {}, this.reset),
      this.keyed);
    this.panel = panel;
    this.setMode("chat");
  }

  group([title, open, rows]) {
    const used = rows.some(([name]) => name in this.values);
    return el("details.group", { open: open || used }, el("summary", {}, title), rows.map((row) => this.row(row)));
  }

  row([name, kind, how]) {
    const input = made(kind, `parameter-${name}`, how);
    const value = this.values[name];
    if (kind === "flag") input.checked = Boolean(value);
    else input.value = value ?? "";
    const problem = el("p.problem", { id: `problem-${name}`, hidden: true });
    input.setAttribute("aria-describedby", `help-${name} problem-${name}`);
    input.addEventListener("input", () => this.changed(name, kind));
    this.inputs.set(name, { input, problem, kind, only: how.only });
    const narrow = NARROW.has(kind) || kind === "flag";
    const label = kind === "schema" ? "JSON schema" : name.replaceAll("_", " ");
    return el(narrow ? "div.field.narrow" : "div.field", { "data-only": how.only ?? null },
      el("label", { for: input.id }, label), input, el("p.fine", { id: `help-${name}` }, how.help), problem);
  }

  /** Only what that mode has. */
  setMode(mode) {
    for (const field of this.panel.querySelectorAll("[data-only]")) field.hidden = field.dataset.only !== mode;
  }

  /** What the model does where nothing is said, shown in the empty fields. */
  setDefaults(defaults) {
    for (const [name, , { otherwise }] of ROWS.filter(([, kind]) => NARROW.has(kind))) {
      const value = defaults[name];
      this.inputs.get(name).input.placeholder = typeof value === "number" ? String(round(value)) : (otherwise ?? "–");
    }
  }

  changed(name, kind) {
    const { input, problem } = this.inputs.get(name);
    const text = kind === "flag" ? (input.checked ? "1" : "") : input.value;
    if (text.trim()) this.values[name] = text;
    else delete this.values[name];
    if (input.tagName === "TEXTAREA") fit(input);
    const wrong = text.trim() ? wrongness(text, kind) : null;
    problem.textContent = wrong ?? "";
    problem.hidden = !wrong;
    input.setAttribute("aria-invalid", String(Boolean(wrong)));
    store.saveSettings({ parameters: this.values });
  }

  clear() {
    for (const [name, { input, kind }] of this.inputs) {
      if (kind === "flag") input.checked = false;
      else input.value = "";
      this.changed(name, kind);
    }
  }

  /** Fields of a request. What cannot be read is left out: the field says so. */
  request(mode) {
    const found = mode === "chat" && this.system.value.trim() ? { system: this.system.value } : {};
    for (const [name, kind, { otherwise }] of ROWS.filter(([, , { only }]) => !only || only === mode)) {
      const text = this.values[name];
      const usable = text !== undefined && !wrongness(text, kind);
      if (usable) found[name] = read(text, kind);
      else if (otherwise !== undefined) found[name] = otherwise;
    }
    return found;
  }

  has(name) {
    return this.inputs.has(fieldOf(name));
  }

  focus(name) {
    const { input } = this.inputs.get(fieldOf(name));
    const group = input.closest("details");
    if (group) group.open = true;
    input.focus();
  }
}

/** The parameter of a path such as `response_format.json_schema`. */
const fieldOf = (path) => path.split(/[.[]/)[0];

const round = (value) => Number(value.toPrecision(6));

function made(kind, id, { min, max, step, otherwise }) {
  if (kind === "flag") return el("input", { id, type: "checkbox" });
  if (NARROW.has(kind)) {
    const more = kind === "integer" ? { step: 1, inputmode: "numeric" } : { step, inputmode: "decimal" };
    return el("input", { id, type: "number", min, max, placeholder: otherwise ?? "–", ...more });
  }
  return el("textarea", { id, rows: "1", spellcheck: "false" });
}

/** Raises SyntaxError for what is no JSON. */
function read(text, kind) {
  if (kind === "number" || kind === "integer") return Number(text);
  if (kind === "flag") return true;
  if (kind === "lines") return text.split("\n").filter(Boolean);
  if (kind === "json") return JSON.parse(text);
  if (kind === "schema") return { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(text) } };
  return text;
}

function wrongness(text, kind) {
  try {
    read(text, kind);
  } catch {
    return "This is not JSON yet; until it is, it is left out.";
  }
  if (kind !== "integer" || /^-?\d+$/.test(text.trim())) return null;
  return "This must be a whole number; until it is, it is left out.";
}
