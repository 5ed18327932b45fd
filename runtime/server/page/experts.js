// Which experts the last answer used: layers down, experts across, as `generate --expert-stats` draws it. The colour is
// the root of how many times its even share an expert was chosen.

import * as api from "./api.js";
import { count, el, plural } from "./dom.js";

const DARKEST = 4; // times the even share
const PARTS = { answer: "Answer", prompt: "Prompt read" };

export class Experts {
  constructor(panel) {
    this.part = "answer";
    this.found = null;
    this.untold = new Set(); // models that do not say which experts they use
    this.title = el("p", {}, "The experts of the next answer will be shown here.");
    this.canvas = el("canvas", { role: "img", hidden: true });
    this.readout = el("p.figures.readout", { "aria-live": "off" });
    this.legend = el("div.legend", { hidden: true },
      el("span", {}, "never"), el("span.ramp", { "aria-hidden": "true" }), this.darkest = el("span"));
    this.choice = el("fieldset.modes", { hidden: true }, el("legend.unseen", {}, "Tokens"),
      Object.entries(PARTS).map(([name, text]) => this.radio(name, text)));
    this.table = el("div");
    panel.append(this.title, this.choice, this.canvas, this.legend, this.readout, this.table);
    this.canvas.addEventListener("pointermove", (event) => this.read(event));
    this.canvas.addEventListener("pointerleave", () => (this.readout.textContent = ""));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(panel);
  }

  radio(name, text) {
    const input = el("input", { type: "radio", name: "experts-part", value: name, checked: name === this.part });
    input.addEventListener("change", () => {
      this.part = name;
      this.draw();
    });
    return el("label", {}, input, el("span", {}, text));
  }

  /** As `api.stream`, with the experts of the answer; of a model that does not tell them, without. */
  async *stream(path, body, signal) {
    const asks = !this.untold.has(body.model);
    try {
      for await (const chunk of api.stream(path, asks ? { ...body, experts: true } : body, signal)) {
        const found = chunk.choices?.[0]?.experts;
        if (found) this.show(found);
        yield chunk;
      }
    } catch (error) {
      if (!asks || error.param !== "experts") throw error;
      this.untold.add(body.model);
      this.show(null, error.message);
      yield* this.stream(path, body, signal);
    }
  }

  /** found: as the server tells it, or null with the reason why it does not. */
  show(found, reason = "") {
    this.found = found;
    if (!found) this.title.textContent = reason;
    this.draw();
  }

  get rows() {
    return this.found.layers.map((layer) => ({ layer: layer.layer, counts: layer[this.part] }));
  }

  draw() {
    const there = Boolean(this.found);
    this.canvas.hidden = this.legend.hidden = this.choice.hidden = !there;
    this.table.replaceChildren();
    this.readout.textContent = "";
    if (!there) return;
    const { experts, top_k: each } = this.found;
    const tokens = this.found[`${this.part}_tokens`];
    this.title.textContent = `${plural(tokens, "token")}, each through ${each} of ${experts} experts in every layer`;
    const most = Math.min(DARKEST, experts / each);
    this.darkest.textContent = `${Number(most.toPrecision(3))} times the even share`;
    this.paint(experts, tokens, most);
    this.table.append(this.summary(tokens));
  }

  paint(experts, tokens, most) {
    const rows = this.rows;
    const panel = this.canvas.parentNode;
    const wide = panel.clientWidth - parseFloat(getComputedStyle(panel).paddingLeft) * 2;
    if (wide <= 0) return; // of a panel that is hidden
    const gutter = 26;
    const column = (wide - gutter) / experts;
    const high = Math.max(6, Math.min(18, column));
    const scale = devicePixelRatio;
    this.cell = { gutter, column, high };
    this.canvas.width = wide * scale;
    this.canvas.height = rows.length * high * scale;
    this.canvas.style.height = `${rows.length * high}px`;
    const context = this.canvas.getContext("2d");
    const style = getComputedStyle(this.canvas);
    const gap = column > 5 ? 1 : 0;
    context.scale(scale, scale);
    context.font = `10px ${style.fontFamily}`;
    context.textAlign = "right";
    context.textBaseline = "middle";
    const every = Math.ceil(12 / high);
    rows.forEach(({ layer, counts }, y) => {
      context.globalAlpha = 1;
      context.fillStyle = style.outlineColor;
      if (y % every === 0) context.fillText(String(layer), gutter - 6, (y + 0.5) * high);
      context.fillStyle = style.color;
      counts.forEach((number, x) => {
        context.globalAlpha = 0.05 + 0.95 * Math.sqrt(Math.min(1, times(number, tokens, this.found) / most));
        context.fillRect(gutter + x * column, y * high, column - gap, high - gap);
      });
    });
    const size = `${rows.length} layers by ${experts} experts`;
    this.canvas.setAttribute("aria-label", `Heat map: ${size}. The table below has each layer's busiest.`);
  }

  read(event) {
    const { gutter, column, high } = this.cell;
    const box = this.canvas.getBoundingClientRect();
    const row = this.rows[Math.floor((event.clientY - box.top) / high)];
    const expert = Math.floor((event.clientX - box.left - gutter) / column);
    const number = row?.counts[expert];
    if (number === undefined) return;
    const even = times(number, this.found[`${this.part}_tokens`], this.found);
    const often = `${count(number)} times, ${even.toFixed(1)} × even`;
    this.readout.textContent = `layer ${row.layer}, expert ${expert}: ${often}`;
  }

  summary(tokens) {
    const names = ["Layer", "Busiest", "of tokens", "As if even"];
    const head = el("tr", {}, names.map((text) => el("th", { scope: "col" }, text)));
    const body = this.rows.map(({ layer, counts }) => {
      const busiest = counts.indexOf(Math.max(...counts));
      const share = tokens ? `${Math.round((100 * counts[busiest]) / tokens)} %` : "–";
      const row = [String(layer), tokens ? String(busiest) : "–", share, effective(counts)];
      return el("tr", {}, row.map((text) => el("td", {}, text)));
    });
    return el("table.facts", {}, el("thead", {}, head), el("tbody", {}, body));
  }
}

/** How many times its even share an expert was chosen. */
function times(number, tokens, { experts, top_k: each }) {
  return tokens ? (number * experts) / (tokens * each) : 0;
}

/** So many experts, used evenly, have the entropy of these counts. */
function effective(counts) {
  const total = counts.reduce((sum, each) => sum + each, 0);
  if (!total) return "–";
  const entropy = counts.filter(Boolean).reduce((sum, each) => sum - (each / total) * Math.log(each / total), 0);
  return Math.exp(entropy).toFixed(1);
}
