// Text that goes on: each token with its probability, which the likeliest others stand beside. One of them can be taken
// in its place; the text then goes on from there.

import { announce, byId, el, fit, follow, paced } from "./dom.js";
import { fault } from "./faults.js";
import { Figures, details, line } from "./figures.js";

const LIKELIEST = 5;
const STEPS = [0.02, 0.1, 0.3, 0.6, 0.9]; // of probability, for the shades of tokens

export class Completion {
  constructor(hooks) {
    this.hooks = hooks;
    this.prompt = "";
    this.tokens = []; // {text, probability, others: [{text, probability}]}
    this.drawn = 0; // so many of them are shown
    this.running = this.figures = null;
    this.later = paced(() => this.draw());
    this.entry = byId("prompt");
    this.shown = byId("completion");
    this.card = byId("token");
    this.live = byId("complete-live");
    byId("completer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.start();
    });
    byId("complete-stop").addEventListener("click", () => this.stop());
    this.entry.addEventListener("input", () => fit(this.entry));
    this.entry.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.start();
    });
    this.shown.addEventListener("pointerover", (event) => this.pointed(event.target));
    this.shown.addEventListener("focusin", (event) => this.pointed(event.target));
    this.shown.addEventListener("keydown", (event) => this.walk(event));
    this.card.addEventListener("keydown", (event) => this.walkCard(event));
    for (const area of [this.shown, this.card]) area.addEventListener("pointerleave", (event) => this.left(event));
  }

  stop() {
    this.running?.abort();
  }

  start() {
    if (this.running || !this.entry.value) return;
    this.prompt = this.entry.value;
    this.tokens = [];
    this.go();
  }

  /** The other token in the place of one, and on from there. */
  instead(at, other) {
    if (this.running) return;
    this.hide();
    const before = this.tokens[at];
    const { text, probability } = before;
    const others = [...before.others.filter((each) => each !== other), { text, probability }];
    this.tokens = [...this.tokens.slice(0, at), { ...other, others, taken: true }];
    this.go();
  }

  async go() {
    const figures = new Figures();
    this.figures = figures; // while it runs
    this.running = new AbortController();
    this.busy(true);
    this.redraw();
    try {
      await this.receive(figures);
    } catch (error) {
      this.failed(figures, error);
    }
    this.draw();
    this.running = this.figures = null;
    this.busy(false);
    const stats = figures.stats;
    this.live.textContent = [line(stats), details(stats)].filter(Boolean).join(" · ");
    announce(`Text added: ${line(stats)}`);
  }

  async receive(figures) {
    const prompt = this.prompt + this.tokens.map((token) => token.text).join("");
    const more = { logprobs: LIKELIEST, stream_options: { include_usage: true } };
    const body = { model: this.hooks.model() || undefined, prompt, ...this.hooks.parameters("complete"), ...more };
    for await (const chunk of this.hooks.stream("v1/completions", body, this.running.signal)) {
      const [choice] = chunk.choices ?? [];
      if (choice) this.take(choice, figures);
      if (choice?.finish_reason) figures.reason = choice.finish_reason;
      if (chunk.usage) figures.settle(chunk.usage);
      this.later();
    }
  }

  take(choice, figures) {
    const found = tokensOf(choice);
    if (found.length) figures.token(found.length);
    this.tokens.push(...found);
  }

  /** What came since the last time. */
  draw() {
    const fresh = this.tokens.slice(this.drawn).map((token, index) => this.span(token, this.drawn + index));
    this.drawn = this.tokens.length;
    follow(this.shown.parentNode, () => this.shown.append(...fresh));
    if (this.figures) this.live.textContent = line(this.figures.stats);
  }

  failed(figures, error) {
    if (error.name === "AbortError") {
      figures.reason = "cancelled";
      return;
    }
    const show = error.param && this.hooks.hasField(error.param)
      ? el("button.plain", { type: "button", onclick: () => this.hooks.showField(error.param) }, "Show the field")
      : null;
    byId("completion-fault").replaceChildren(
      fault(error, el("button.plain", { type: "button", onclick: () => this.go() }, "Try again"), show));
    if (error.status === 401) this.hooks.unauthorized();
  }

  busy(whether) {
    byId("complete-send").hidden = whether;
    byId("complete-stop").hidden = !whether;
  }

  redraw() {
    byId("completion-fault").replaceChildren();
    this.hide();
    this.shown.replaceChildren(el("span.given", {}, this.prompt));
    this.drawn = 0;
    this.draw();
  }

  span(token, at) {
    const shade = token.probability === null ? "none" : STEPS.filter((step) => token.probability >= step).length;
    const name = `${visible(token.text)} ${percent(token.probability)}`;
    const how = { "data-at": at, "data-shade": shade, tabindex: at ? "-1" : "0", role: "button", "aria-label": name };
    const span = el("span.token", how, token.text);
    span.classList.toggle("taken", Boolean(token.taken));
    return span;
  }

  // ---- the card beside a token

  pointed(target) {
    if (!target.matches?.(".token")) return;
    const at = Number(target.dataset.at);
    const token = this.tokens[at];
    const shown = [{ text: token.text, probability: token.probability, own: true }, ...token.others];
    shown.sort((one, other) => (other.probability ?? 0) - (one.probability ?? 0));
    this.card.replaceChildren(...shown.map((other) => this.choice(at, other)));
    this.card.hidden = false;
    this.place(target);
    this.target = target;
  }

  choice(at, other) {
    const bar = el("meter", { min: 0, max: 1, value: other.probability ?? 0, "aria-hidden": "true" });
    const inside = [el("code", {}, visible(other.text)), bar, el("span", {}, percent(other.probability))];
    if (other.own) return el("div.choice.own", {}, inside);
    if (other.text.includes("\ufffd")) return el("div.choice", {}, inside); // a part of a character: no text to go on
    const title = "Go on with this one instead";
    return el("button.choice", { type: "button", title, onclick: () => this.instead(at, other) }, inside);
  }

  place(target) {
    const box = target.getClientRects()[0];
    const { offsetWidth: width, offsetHeight: height } = this.card;
    const below = box.bottom + height + 8 < innerHeight;
    this.card.style.left = `${Math.max(8, Math.min(box.left, innerWidth - width - 8))}px`;
    this.card.style.top = `${below ? box.bottom + 2 : Math.max(8, box.top - height - 2)}px`;
  }

  left(event) {
    const inside = event.relatedTarget?.closest?.("#token, .token");
    if (!inside && !this.card.contains(document.activeElement)) this.hide();
  }

  hide() {
    this.card.hidden = true;
  }

  walk(event) {
    const at = Number(document.activeElement?.dataset?.at);
    if (Number.isNaN(at)) return;
    const spans = this.shown.querySelectorAll(".token");
    const next = { ArrowRight: at + 1, ArrowDown: at + 1, ArrowLeft: at - 1, ArrowUp: at - 1 };
    const to = { ...next, Home: 0, End: spans.length - 1 }[event.key];
    if (spans[to]) {
      event.preventDefault();
      spans[at].tabIndex = -1;
      spans[to].tabIndex = 0;
      spans[to].focus();
    }
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.card.querySelector("button")?.focus();
    }
    if (event.key === "Escape" && !this.card.hidden) {
      event.stopPropagation();
      this.hide();
    }
  }

  walkCard(event) {
    if (event.key === "Escape") {
      event.stopPropagation();
      this.target.focus();
    }
    const buttons = [...this.card.querySelectorAll("button")];
    const to = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!to) return;
    event.preventDefault();
    buttons[buttons.indexOf(document.activeElement) + to]?.focus();
  }
}

/** The tokens of a chunk. Where text and tokens do not agree, a character is split between tokens: the text goes to the
 * last of them. */
function tokensOf({ text, logprobs }) {
  if (!logprobs?.tokens?.length) return text ? [{ text, probability: null, others: [] }] : [];
  const whole = logprobs.tokens.join("") === text;
  return logprobs.tokens.map((token, at) => ({
    text: whole ? token : at === logprobs.tokens.length - 1 ? text : "",
    probability: likely(logprobs.token_logprobs[at]),
    others: Object.entries(logprobs.top_logprobs?.[at] ?? {})
      .filter(([other]) => other !== token)
      .map(([other, logprob]) => ({ text: other, probability: likely(logprob) })),
  }));
}

const likely = (logprob) => (typeof logprob === "number" ? Math.exp(logprob) : null);

function percent(probability) {
  if (probability === null) return "";
  return probability >= 0.0995 ? `${(100 * probability).toFixed(0)} %` : `${(100 * probability).toPrecision(2)} %`;
}

const visible = (text) => text.replace(/^ | $/g, "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "∅";
