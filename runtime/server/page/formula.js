// Formulas in TeX's notation as MathML, which browsers set by themselves. One with a command that is not known here is
// shown as it is written.

import { el } from "./dom.js";

const NAMESPACE = "http://www.w3.org/1998/Math/MathML";
const LONGEST = 4000;
const DEEPEST = 40;
const TOKEN = /\\[a-zA-Z]+\*?|\\[^]|\d+(?:\.\d+)?|\s+|[^]/gu;

/** Without what objects have by nature: `\constructor` is no letter. */
const bare = (object) => Object.assign(Object.create(null), object);
const table = (text) => bare(Object.fromEntries(text.trim().split(/\s+/).map((pair) => pair.split("="))));

const LETTERS = table(`
  alpha=α beta=β gamma=γ delta=δ epsilon=ϵ varepsilon=ε zeta=ζ eta=η theta=θ vartheta=ϑ iota=ι kappa=κ lambda=λ
  mu=μ nu=ν xi=ξ pi=π rho=ρ sigma=σ tau=τ upsilon=υ phi=ϕ varphi=φ chi=χ psi=ψ omega=ω Gamma=Γ Delta=Δ Theta=Θ
  Lambda=Λ Xi=Ξ Pi=Π Sigma=Σ Phi=Φ Psi=Ψ Omega=Ω ell=ℓ hbar=ℏ infty=∞ partial=∂ nabla=∇ emptyset=∅ varnothing=∅
  top=⊤ bot=⊥ Re=ℜ Im=ℑ aleph=ℵ
`);
const SIGNS = table(`
  cdot=· times=× div=÷ pm=± mp=∓ le=≤ leq=≤ leqslant=⩽ ge=≥ geq=≥ geqslant=⩾ ne=≠ neq=≠ approx=≈ equiv=≡ sim=∼
  simeq=≃ cong=≅ propto=∝ in=∈ notin=∉ ni=∋ subset=⊂ subseteq=⊆ supset=⊃ supseteq=⊇ cup=∪ cap=∩ setminus=∖ to=→
  rightarrow=→ leftarrow=← leftrightarrow=↔ longrightarrow=⟶ Rightarrow=⇒ Leftarrow=⇐ Leftrightarrow=⇔ iff=⟺
  implies=⟹ mapsto=↦ uparrow=↑ downarrow=↓ forall=∀ exists=∃ neg=¬ land=∧ wedge=∧ lor=∨ vee=∨ ldots=… dots=…
  cdots=⋯ vdots=⋮ ddots=⋱ odot=⊙ oplus=⊕ ominus=⊖ otimes=⊗ ast=∗ star=⋆ circ=∘ bullet=∙ prime=′ mid=∣ parallel=∥
  perp=⊥ ll=≪ gg=≫ therefore=∴ because=∵ colon=: backslash=\\ triangle=△ angle=∠ langle=⟨ rangle=⟩ lfloor=⌊
  rfloor=⌋ lceil=⌈ rceil=⌉ lvert=| rvert=| lVert=‖ rVert=‖ vert=| Vert=‖
`);
const LARGE = table("sum=∑ prod=∏ int=∫ iint=∬ oint=∮ bigcup=⋃ bigcap=⋂ bigoplus=⨁ bigotimes=⨂");
const words = (text) => new Set(text.trim().split(/\s+/));
const NAMES = words("log ln lg exp sin cos tan cot sinh cosh tanh arcsin arccos arctan det dim deg gcd ker hom mod");
const LIMITS = words("max min sup inf lim limsup liminf argmax argmin Pr");
const ACCENTS = table(`hat=^ widehat=^ bar=¯ overline=¯ tilde=~ widetilde=~ vec=→ dot=˙ ddot=¨ underline=_ overbrace=⏞
  underbrace=⏟`);
const WORDS = words("text textbf textit texttt mathrm mathsf mathtt operatorname operatorname*");
const UNDER = new Set(["underline", "underbrace"]);
const SPACES = table("\\,=0.17em \\:=0.22em \\;=0.28em \\!=-0.17em \\quad=1em \\qquad=2em ~=0.3em");
const FENCES = bare({
  matrix: ["", ""],
  pmatrix: ["(", ")"],
  bmatrix: ["[", "]"],
  vmatrix: ["|", "|"],
  cases: ["{", ""],
});
const BRACES = bare({ "\\|": "‖", "\\{": "{", "\\}": "}" });
const SIDES = words("aligned align align* split gathered array");
const DOUBLE = table("C=ℂ H=ℍ N=ℕ P=ℙ Q=ℚ R=ℝ Z=ℤ");
const SCRIPT = table("B=ℬ E=ℰ F=ℱ H=ℋ I=ℐ L=ℒ M=ℳ R=ℛ");
const IGNORED = words(`\\displaystyle \\textstyle \\limits \\nolimits \\nonumber \\big \\Big \\bigg \\Bigg \\bigl \\bigr
  \\Bigl \\Bigr`);

const math = (tag, children = [], attributes = {}) => {
  const node = document.createElementNS(NAMESPACE, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};

/** block: on a line of its own. */
export function formula(text, block) {
  const source = text.trim();
  try {
    if (source.length > LONGEST) throw new Unknown();
    const found = new Parser(source).whole();
    if (!block) return math("math", [found]);
    return el("div.formula", { tabindex: "0" }, math("math", [found], { display: "block" }));
  } catch (error) {
    if (!(error instanceof Unknown)) throw error;
    return block ? el("pre.math", { tabindex: "0" }, source) : el("code.math", {}, source);
  }
}

class Unknown extends Error {}

class Parser {
  constructor(text) {
    this.tokens = text.match(TOKEN) ?? [];
    this.at = 0;
    this.depth = 0;
  }

  whole() {
    const row = this.row(() => false);
    if (this.at < this.tokens.length) throw new Unknown();
    return row;
  }

  get next() {
    return this.tokens[this.at];
  }

  skipBlanks() {
    while (this.next !== undefined && !this.next.trim()) this.at += 1;
  }

  take() {
    this.skipBlanks();
    if (this.next === undefined) throw new Unknown();
    this.at += 1;
    return this.tokens[this.at - 1];
  }

  expect(token) {
    if (this.take() !== token) throw new Unknown();
  }

  row(ends) {
    this.depth += 1;
    if (this.depth > DEEPEST) throw new Unknown();
    const found = [];
    for (;;) {
      this.skipBlanks();
      if (this.next === undefined || this.next === "}" || ends(this.next)) break;
      found.push(...this.scripted());
    }
    this.depth -= 1;
    return found.length === 1 ? found[0] : math("mrow", found);
  }

  /** An atom with what stands below and above it; none for a command that only says how to set. */
  scripted() {
    if (IGNORED.has(this.next)) {
      this.at += 1;
      return [];
    }
    const name = this.next.slice(1);
    const limits = (LARGE[name] && !name.endsWith("int")) || LIMITS.has(name);
    const base = "^_".includes(this.next) ? math("mrow") : this.atom();
    const scripts = {};
    for (this.skipBlanks(); this.next === "^" || this.next === "_" || this.next === "'"; this.skipBlanks()) {
      const mark = this.next === "_" ? "_" : "^";
      if (scripts[mark]) throw new Unknown();
      if (this.next !== "'") this.at += 1;
      scripts[mark] = this.next === "'" ? this.primes() : this.atom();
    }
    const { _: below, "^": above } = scripts;
    if (!below && !above) return [base];
    const tags = limits ? ["munder", "mover", "munderover"] : ["msub", "msup", "msubsup"];
    return [math(tags[below && above ? 2 : below ? 0 : 1], [base, below, above].filter(Boolean))];
  }

  primes() {
    let text = "";
    for (; this.next === "'"; this.at += 1) text += "′";
    return math("mo", [text]);
  }

  atom() {
    const token = this.take();
    if (token === "{") {
      const inside = this.row(() => false);
      this.expect("}");
      return inside;
    }
    if (token[0] === "\\" && token.length > 1) return this.command(token);
    if (/^\d/.test(token)) return math("mn", [token]);
    if (/^\p{L}$/u.test(token)) return math("mi", [token]);
    if (SPACES[token]) return math("mspace", [], { width: SPACES[token] });
    if (token === "-") return math("mo", ["−"]);
    if ("{}&#%$^_\\".includes(token)) throw new Unknown();
    return math("mo", [token], "()[]|".includes(token) ? { stretchy: "false" } : {});
  }

  command(token) {
    const name = token.slice(1);
    if (LETTERS[name]) return math("mi", [LETTERS[name]]);
    if (SIGNS[name]) return math("mo", [SIGNS[name]], { stretchy: "false" });
    if (LARGE[name]) return math("mo", [LARGE[name]]);
    if (NAMES.has(name) || LIMITS.has(name)) return this.named(name);
    if (SPACES[token]) return math("mspace", [], { width: SPACES[token] });
    if ("{}%$&#_|".includes(name)) return math("mo", [name === "|" ? "‖" : name], { stretchy: "false" });
    if (ACCENTS[name]) return this.accented(name);
    if (["frac", "dfrac", "tfrac", "cfrac"].includes(name)) return math("mfrac", [this.atom(), this.atom()]);
    if (name === "binom") return this.binomial();
    if (name === "sqrt") return this.root();
    if (WORDS.has(name)) return this.text(name);
    if (["mathbf", "boldsymbol", "bm"].includes(name)) return math("mrow", [this.atom()], { class: "bold" });
    if (name === "boxed") return math("mrow", [this.atom()], { class: "boxed" });
    if (name === "mathbb") return math("mi", [this.letters(DOUBLE, 0x1d538)]);
    if (name === "mathcal" || name === "mathscr") return math("mi", [this.letters(SCRIPT, 0x1d49c)]);
    if (name === "mathit") return this.atom();
    if (name === "left") return this.fenced();
    if (name === "begin") return this.environment();
    throw new Unknown();
  }

  named(name) {
    return math("mo", [name], { form: "prefix", lspace: "0", rspace: this.next === "(" ? "0" : "0.17em" });
  }

  binomial() {
    const inside = math("mfrac", [this.atom(), this.atom()], { linethickness: "0" });
    return math("mrow", [math("mo", ["("]), inside, math("mo", [")"])]);
  }

  accented(name) {
    const mark = math("mo", [ACCENTS[name]], { stretchy: String(name.length > 5) });
    return math(UNDER.has(name) ? "munder" : "mover", [this.atom(), mark], { accent: "true" });
  }

  root() {
    this.skipBlanks();
    if (this.next !== "[") return math("msqrt", [this.atom()]);
    this.at += 1;
    const degree = this.row((token) => token === "]");
    this.expect("]");
    return math("mroot", [this.atom(), degree]);
  }

  /** The letters between braces, as they are. */
  raw() {
    this.expect("{");
    const end = this.tokens.indexOf("}", this.at);
    if (end < 0) throw new Unknown();
    const text = this.tokens.slice(this.at, end).join("");
    this.at = end + 1;
    if (/[{$\\]/.test(text)) throw new Unknown();
    return text;
  }

  text(name) {
    const text = this.raw().replace(/^ | $/g, "\u00a0"); // which MathML would drop
    return name.startsWith("text") ? math("mtext", [text]) : math("mi", [text], { mathvariant: "normal" });
  }

  letters(special, first) {
    const text = this.next?.trim() === "{" || !this.next?.trim() ? this.raw() : this.take();
    if (!/^[A-Z]+$/.test(text)) throw new Unknown();
    const other = (letter) => String.fromCodePoint(first + letter.charCodeAt(0) - 65);
    return [...text].map((letter) => special[letter] ?? other(letter)).join("");
  }

  fence() {
    const token = this.take();
    if (token === ".") return [];
    const text = token.length === 1 ? token : (BRACES[token] ?? SIGNS[token.slice(1)]);
    if (text === undefined) throw new Unknown();
    return [math("mo", [text], { stretchy: "true", fence: "true" })];
  }

  fenced() {
    const open = this.fence();
    const inside = this.row((token) => token === "\\right");
    this.expect("\\right");
    return math("mrow", [...open, inside, ...this.fence()]);
  }

  environment() {
    const name = this.raw();
    if (!FENCES[name] && !SIDES.has(name)) throw new Unknown();
    const [open, close] = FENCES[name] ?? ["", ""];
    if (name === "array") this.raw(); // how columns stand
    const rows = [[]];
    for (;;) {
      rows.at(-1).push(math("mtd", [this.row((token) => token === "&" || token === "\\\\" || token === "\\end")]));
      const token = this.take();
      if (token === "\\end") break;
      if (token === "\\\\") rows.push([]);
      else if (token !== "&") throw new Unknown();
    }
    if (this.raw() !== name) throw new Unknown();
    const fence = (text) => (text ? [math("mo", [text], { stretchy: "true", fence: "true" })] : []);
    const aligned = SIDES.has(name) && name !== "array" ? "aligned" : name;
    const cells = math("mtable", rows.map((row) => math("mtr", row)), { class: aligned });
    return math("mrow", [...fence(open), cells, ...fence(close)]);
  }
}
