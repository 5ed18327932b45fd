// Errors as one reads them: what went wrong, what to do, and where.

import { el } from "./dom.js";

/** As it is kept with an answer. */
export const kept = ({ message, status, code, param, hint }) => ({ message, status, code, param, hint });

/** actions: buttons below it. */
export function fault({ message, status, code, param, hint }, ...actions) {
  const parts = [status ? `HTTP ${status}` : null, code, param];
  const where = parts.filter((part) => part && part !== String(status)).join(" · ");
  return el("div.fault", { role: "alert" },
    el("p", {}, message),
    hint ? el("p.hint", {}, hint) : null,
    where ? el("p.fine", {}, where) : null,
    actions.some(Boolean) ? el("div.actions", {}, actions.filter(Boolean)) : null);
}
