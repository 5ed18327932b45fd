// The conversation that is shown, and the answer that is under way.

import { announce, byId, fit, follow, notify, paced } from "./dom.js";
import { Figures, line } from "./figures.js";
import { kept } from "./faults.js";
import { MessageView } from "./message.js";
import * as store from "./store.js";

const SAVE_EVERY = 2000; // ms, while an answer comes

export class Chat {
  /** hooks: model() gives the name, parameters(mode) what goes into a request, stream(path, body, signal) the answer,
   * hasField(name) whether there is such a parameter; saved(), unauthorized() and showField(name) are told. */
  constructor(hooks) {
    this.hooks = hooks;
    this.conversation = null;
    this.running = null; // {conversation, node, controller, figures, view}
    this.entry = byId("entry");
    this.list = byId("messages");
    this.scroll = byId("scroll");
    this.later = paced(() => this.draw());
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    byId("stop").addEventListener("click", () => this.stop());
    this.entry.addEventListener("input", () => fit(this.entry));
    this.entry.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    addEventListener("pagehide", () => this.running && store.save(this.running.conversation));
  }

  show(conversation) {
    this.conversation = conversation;
    this.redraw();
    this.scroll.scrollTop = this.scroll.scrollHeight;
  }

  redraw() {
    const path = this.conversation.path();
    byId("welcome").hidden = path.length > 0;
    const views = path.map((node) => new MessageView(node, this));
    this.list.replaceChildren(...views.map((view) => view.element));
    if (!this.running) return;
    const at = path.indexOf(this.running.node);
    this.running.view = at < 0 ? null : views[at];
    this.draw();
  }

  send() {
    const text = this.entry.value.trim();
    if (!text) return;
    if (!this.free()) return;
    this.entry.value = "";
    fit(this.entry);
    const question = this.conversation.add(this.conversation.path().at(-1), "user", text);
    this.answer(question);
  }

  /** Another version of a question, and its answer. */
  edit(node, text) {
    if (!text.trim() || !this.free()) return;
    this.answer(this.conversation.add(this.conversation.parentOf(node), "user", text.trim()));
  }

  /** Another version of an answer. */
  retry(node) {
    if (this.free()) this.answer(this.conversation.parentOf(node));
  }

  /** Whether an answer can be asked for; it is said if not. */
  free() {
    if (this.running) notify("An answer is still coming. Stop it first.");
    return !this.running;
  }

  choose(node) {
    this.conversation.choose(node);
    store.save(this.conversation);
    this.redraw();
  }

  stop() {
    this.running?.controller.abort();
  }

  async answer(question) {
    const { conversation } = this;
    const node = conversation.add(question, "assistant", "");
    node.model = this.hooks.model();
    const messages = this.messages(node);
    const figures = new Figures();
    this.running = { conversation, node, figures, controller: new AbortController(), view: null, saved: Date.now() };
    this.busy(true);
    this.redraw();
    if (!matchMedia("(pointer: coarse)").matches) this.entry.focus({ preventScroll: true });
    this.scroll.scrollTop = this.scroll.scrollHeight;
    try {
      await this.receive(node, messages);
    } catch (error) {
      this.failed(node, error);
    }
    node.stats = figures.stats;
    const { view } = this.running;
    this.running = null;
    this.busy(false);
    store.save(conversation);
    this.hooks.saved();
    follow(this.scroll, () => view?.update(false));
    announce(node.error ? `Error: ${node.error.message}` : `Answer: ${line(node.stats)}`);
  }

  messages(node) {
    const { system, ...parameters } = this.hooks.parameters("chat");
    const said = this.conversation.before(node).filter((each) => each.content);
    const messages = said.map(({ role, content }) => ({ role, content }));
    if (system) messages.unshift({ role: "system", content: system });
    return { messages, ...parameters };
  }

  async receive(node, asked) {
    const body = { model: node.model || undefined, ...asked, stream_options: { include_usage: true } };
    for await (const chunk of this.hooks.stream("v1/chat/completions", body, this.running.controller.signal)) {
      this.take(node, chunk);
    }
  }

  take(node, chunk) {
    const { figures } = this.running;
    const [choice] = chunk.choices ?? [];
    const { content, reasoning_content: thought } = choice?.delta ?? {};
    if (thought) node.thoughts = (node.thoughts ?? "") + thought;
    if (content) node.content += content;
    if (content && node.thoughts) node.thought ??= (performance.now() - figures.began) / 1000;
    if (content || thought) figures.token();
    if (choice?.finish_reason) figures.reason = choice.finish_reason;
    if (chunk.usage) figures.settle(chunk.usage);
    this.later();
  }

  failed(node, error) {
    if (error.name === "AbortError") {
      this.running.figures.reason = "cancelled";
      return;
    }
    node.error = kept(error);
    if (error.status === 401) this.hooks.unauthorized();
  }

  busy(whether) {
    byId("send").hidden = whether;
    byId("stop").hidden = !whether;
    byId("live").textContent = "";
    clearInterval(this.clock);
    if (!whether) return;
    announce("The answer is coming.");
    this.clock = setInterval(() => this.later(), 100); // also while nothing comes
  }

  draw() {
    if (!this.running) return;
    const { conversation, node, figures, view, saved } = this.running;
    const waited = (performance.now() - figures.began) / 1000;
    byId("live").textContent = line(figures.stats, waited);
    follow(this.scroll, () => view?.update(true));
    if (Date.now() - saved < SAVE_EVERY || !node.content) return;
    this.running.saved = Date.now();
    store.save(conversation);
  }
}
