// The state of the server, while it is looked at: memory, places, queue, pages, speed.

import * as api from "./api.js";
import { bytes, count, el, seconds } from "./dom.js";

const EVERY = 2000; // ms
const DRAFTS = "dsv3c_draft_tokens_total";

export class Machine {
  constructor(panel, hooks) {
    this.hooks = hooks;
    this.body = el("div");
    panel.append(this.body);
    this.before = null; // {at, tokens, model} of the last look
    this.timer = null;
  }

  /** Look while `whether`, and the page is seen. */
  watch(whether) {
    clearTimeout(this.timer);
    this.timer = null;
    if (whether) this.look();
  }

  async look() {
    try {
      if (!document.hidden) await this.refresh();
    } catch (error) {
      this.body.replaceChildren(el("p", {}, error.message), el("p.fine", {}, error.hint ?? ""));
    }
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.look(), EVERY);
  }

  async refresh() {
    const model = this.hooks.model();
    const asked = `slots?model=${encodeURIComponent(model)}`;
    const [text, slots] = await Promise.all([api.getText("metrics"), api.get(asked)]);
    this.body.replaceChildren(...this.sections(parse(text), slots, model));
  }

  sections(metrics, slots, model) {
    const read = (name, labels = {}) => metrics(name, { model, ...labels });
    const busy = slots.filter((slot) => slot.is_processing).length;
    const pages = read("dsv3c_cache_pages");
    const used = pages === null ? null : pages - read("dsv3c_cache_pages_free");
    const later = read("dsv3c_prefix_cache_pages");
    return [
      section("Work",
        el("div.places", { role: "img", "aria-label": `${busy} of ${slots.length} places busy` },
          slots.map((slot) => el(slot.is_processing ? "span.busy" : "span"))),
        facts([
          ["Texts in the batch", of(busy, slots.length)],
          ["Requests at work", whole(read("dsv3c_requests_working"))],
          ["Requests waiting", whole(read("dsv3c_requests_waiting"))],
          ["Tokens a second", this.rate(model, read("dsv3c_tokens_total", { kind: "generated" }))],
        ])),
      section("Memory",
        pages ? el("meter", { min: 0, max: pages, value: used, "aria-label": "Pages used" }) : null,
        facts([
          ["Pages of the cache in use", of(used, pages)],
          ["kept for later prompts", whole(later)],
          ["Of the process", size(metrics("process_resident_memory_bytes"))],
        ])),
      section("So far", facts([
        ["Answers", whole(read("dsv3c_answers_total"))],
        ["Prompt tokens", whole(read("dsv3c_tokens_total", { kind: "prompt" }))],
        ["of them cached", whole(read("dsv3c_tokens_total", { kind: "prompt_cached" }))],
        ["Tokens written", whole(read("dsv3c_tokens_total", { kind: "generated" }))],
        ["Drafts that were right", share(read(DRAFTS, { outcome: "accepted" }), read(DRAFTS))],
        ["First token, mean", mean(read, "dsv3c_time_to_first_token_seconds")],
        ["Between tokens, mean", mean(read, "dsv3c_inter_token_seconds")],
      ])),
    ];
  }

  /** Of answers that ended since the last look. */
  rate(model, tokens) {
    const before = this.before;
    this.before = { at: performance.now(), tokens, model };
    if (!before || before.model !== model || tokens === null) return null;
    const found = ((tokens - before.tokens) * 1000) / (this.before.at - before.at);
    return count(Math.round(found));
  }
}

const section = (title, ...children) => el("section.facts", {}, el("h2", {}, title), children);

/** Rows of those that are known. */
function facts(rows) {
  const known = rows.filter(([, value]) => value !== null);
  return el("dl", {}, known.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

const whole = (value) => (value === null ? null : count(value));
const size = (value) => (value === null ? null : bytes(value));
const of = (value, all) => (value === null || all === null ? null : `${count(value)} of ${count(all)}`);

const share = (part, all) => (all ? `${Math.round((100 * part) / all)} %` : null);

function mean(read, name) {
  const number = read(`${name}_count`);
  return number ? seconds(read(`${name}_sum`) / number) : null;
}

/** Reads Prometheus' text: `name{labels} value`. What it returns sums the samples that have the given labels, null
 * where there are none. */
export function parse(text) {
  const samples = Map.groupBy(text.split("\n").map(sample).filter(Boolean), ({ name }) => name);
  return (name, wanted = {}) => {
    const fits = ({ labels }) => Object.entries(wanted).every(([key, value]) => labels[key] === value);
    const found = (samples.get(name) ?? []).filter(fits);
    return found.length ? found.reduce((sum, { value }) => sum + value, 0) : null;
  };
}

function sample(line) {
  const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ([^ ]+)/.exec(line);
  const value = match ? Number(match[3]) : Number.NaN;
  if (!Number.isFinite(value)) return null;
  const labels = {};
  for (const [, key, said] of (match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
    labels[key] = said.replace(/\\(.)/g, "$1");
  }
  return { name: match[1], labels, value };
}
