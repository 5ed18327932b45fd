// A conversation is a tree: to edit a message or to ask for another answer adds a sibling, so nothing that was said is
// lost. What is shown is the path that follows `chosen`.

const ROOT = "root";

const newId = () => crypto.getRandomValues(new Uint32Array(2)).reduce((text, part) => text + part.toString(36), "");

export class Conversation {
  constructor(data = {}) {
    this.id = data.id ?? newId();
    this.title = data.title ?? "";
    this.updated = data.updated ?? Date.now();
    this.nodes = data.nodes ?? {}; // id -> {id, parent, role, content, thoughts, model, stats, error}
    this.chosen = data.chosen ?? {}; // id of a parent -> id of the child that is shown
  }

  get empty() {
    return Object.keys(this.nodes).length === 0;
  }

  toJSON() {
    const { id, title, updated, nodes, chosen } = this;
    return { id, title, updated, nodes, chosen };
  }

  /** What is shown, from the first message on. */
  path() {
    const found = [];
    for (let at = this.chosen[ROOT]; at && this.nodes[at]; at = this.chosen[at]) found.push(this.nodes[at]);
    return found;
  }

  /** The messages before one. */
  before(node) {
    const path = this.path();
    return path.slice(0, path.indexOf(node));
  }

  add(parent, role, content) {
    const node = { id: newId(), parent: parent?.id ?? ROOT, role, content };
    this.nodes[node.id] = node;
    this.chosen[node.parent] = node.id;
    this.updated = Date.now();
    if (role === "user" && !this.title) this.title = content.trim().replace(/\s+/g, " ").slice(0, 80);
    return node;
  }

  parentOf(node) {
    return this.nodes[node.parent] ?? null;
  }

  /** The versions of a message, in the order in which they came. */
  versions(node) {
    return Object.values(this.nodes).filter((other) => other.parent === node.parent);
  }

  choose(node) {
    this.chosen[node.parent] = node.id;
  }
}
