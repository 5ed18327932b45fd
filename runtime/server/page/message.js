// One message of a conversation on the page.

import { copy, el, fit, seconds } from "./dom.js";
import { fault } from "./faults.js";
import { details, line } from "./figures.js";
import { render } from "./markdown.js";

export class MessageView {
  /** chat: `conversation`, and `edit`, `retry`, `choose`, `running`, `hooks`. */
  constructor(node, chat) {
    this.node = node;
    this.chat = chat;
    const user = node.role === "user";
    this.body = el(user ? "div.said" : "div.prose");
    this.extra = el("div");
    this.figures = el("span.figures");
    this.thoughts = user ? null : this.thoughtsView();
    this.buttons = this.actions();
    this.footer = el("footer", {}, this.figures, this.versions(), this.buttons);
    const name = user ? "You" : node.model || "Answer";
    this.element = el("li", { class: `message ${user ? "user" : "answer"}` },
      el("article", { "aria-label": name }, this.thoughts, this.body, this.extra, this.footer));
    this.update(false);
  }

  update(running) {
    const { node } = this;
    if (node.role === "user") {
      this.body.textContent = node.content;
      return;
    }
    this.element.classList.toggle("running", running);
    this.element.firstChild.setAttribute("aria-busy", String(running));
    render(this.body, node.content);
    this.updateThoughts(running);
    if (running) return;
    this.buttons.hidden = Boolean(node.error && !node.content); // the error has one of its own
    this.extra.replaceChildren(...this.problems());
    if (node.stats) this.figures.textContent = [line(node.stats), details(node.stats)].filter(Boolean).join(" · ");
  }

  problems() {
    const { node, chat } = this;
    if (!node.error) {
      if (!node.stats || node.content || node.thoughts) return [];
      const stopped = node.stats.reason === "cancelled";
      return [el("p.fine", {}, stopped ? "Stopped before the first token." : "An empty answer.")];
    }
    const { param } = node.error;
    const show = param && chat.hooks.hasField(param)
      ? el("button.plain", { type: "button", onclick: () => chat.hooks.showField(param) }, "Show the field")
      : null;
    const again = el("button.plain", { type: "button", onclick: () => chat.retry(node) }, "Try again");
    return [fault(node.error, again, show)];
  }

  thoughtsView() {
    this.thought = el("div.prose");
    this.summary = el("summary", {}, "Thoughts");
    return el("details.thoughts", { hidden: true }, this.summary, this.thought);
  }

  updateThoughts(running) {
    const { node } = this;
    this.thoughts.hidden = !node.thoughts;
    if (!node.thoughts) return;
    render(this.thought, node.thoughts);
    const thinking = running && !node.content;
    this.thoughts.classList.toggle("thinking", thinking);
    const done = node.thought ? `Thought for ${seconds(node.thought)}` : "Thoughts";
    this.summary.textContent = thinking ? "Thinking" : done;
  }

  versions() {
    const all = this.chat.conversation.versions(this.node);
    if (all.length < 2) return null;
    const at = all.indexOf(this.node);
    const step = (to, text, label) => {
      const onclick = () => this.chat.choose(all[to]);
      return el("button.plain", { type: "button", "aria-label": label, disabled: !all[to], onclick }, text);
    };
    return el("span.versions", {},
      step(at - 1, "‹", "Earlier version"), `${at + 1}/${all.length}`, step(at + 1, "›", "Later version"));
  }

  actions() {
    const { node, chat } = this;
    const button = (text, onclick) => el("button.plain", { type: "button", onclick }, text);
    const copying = button("Copy", () => copy(node.content, copying));
    const other = node.role === "user" ? button("Edit", () => this.edit()) : button("Retry", () => chat.retry(node));
    return el("span.actions", {}, copying, other);
  }

  edit() {
    const area = el("textarea", { "aria-label": "Edit the message", rows: "1" });
    area.value = this.node.content;
    const form = el("form.edit", {}, area,
      el("div.actions", {},
        el("button.plain", { type: "button", onclick: () => this.close(form) }, "Cancel"),
        el("button.primary", { type: "submit" }, "Send")));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.chat.edit(this.node, area.value);
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        this.close(form);
      }
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.target !== area) return;
      event.preventDefault();
      form.requestSubmit();
    });
    area.addEventListener("input", () => fit(area));
    this.body.hidden = this.footer.hidden = true;
    this.body.after(form);
    fit(area);
    area.focus();
  }

  close(form) {
    form.remove();
    this.body.hidden = this.footer.hidden = false;
    [...this.footer.querySelectorAll("button")].at(-1)?.focus();
  }
}
