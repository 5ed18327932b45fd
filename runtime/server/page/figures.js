// How fast an answer comes: time to the first token, tokens a second after it. While it comes tokens are counted by the
// chunks of the stream; at its end the server says how many there were.

import { count, plural, seconds } from "./dom.js";

export class Figures {
  constructor() {
    this.began = performance.now();
    this.first = null;
    this.last = null;
    this.tokens = 0;
    this.prompt = null;
    this.cached = 0;
    this.reason = null;
  }

  token(number = 1) {
    this.last = performance.now();
    this.first ??= this.last;
    this.tokens += number;
  }

  settle(usage) {
    this.tokens = usage.completion_tokens ?? this.tokens;
    this.prompt = usage.prompt_tokens ?? null;
    this.cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  }

  /** What is kept of it with the answer. */
  get stats() {
    return {
      first: this.first === null ? null : (this.first - this.began) / 1000,
      rate: this.tokens > 1 && this.last > this.first ? ((this.tokens - 1) * 1000) / (this.last - this.first) : null,
      tokens: this.tokens,
      prompt: this.prompt,
      cached: this.cached,
      reason: this.reason,
    };
  }
}

/** In a line; while nothing has come, how long it has been waited for. */
export function line(stats, waited = null) {
  if (stats.first === null) return waited === null ? "" : `reading, ${seconds(waited)}`;
  const number = stats.rate >= 100 ? count(Math.round(stats.rate)) : stats.rate?.toFixed(1);
  const rate = stats.rate === null ? null : `${number} tok/s`;
  return [`first token ${seconds(stats.first)}`, rate, plural(stats.tokens, "token")].filter(Boolean).join(" · ");
}

const REASONS = { length: "cut at the length limit", cancelled: "stopped", time: "cut at the time limit" };

/** What else there is to say of an answer that is there. */
export function details(stats) {
  const found = [REASONS[stats.reason] ?? null];
  if (stats.prompt) found.push(`prompt ${count(stats.prompt)}`);
  if (stats.cached) found.push(`${count(stats.cached)} of it cached`);
  return found.filter(Boolean).join(" · ");
}
