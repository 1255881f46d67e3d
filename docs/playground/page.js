// Controls -> numbers (maths.js) -> four figures, each with its text for screen readers; and the quiz.
"use strict";
const byId = (id) => document.getElementById(id);
const NS = "http://www.w3.org/2000/svg", W = 480, H = 320, M = { left: 58, right: 14, top: 14, bottom: 44 };
const CHANGES = { looped: "eps 1/N", sqrt: "eps 1/sqrt(N)", none: "eps none" };
const INKS = ["one", "two", "three"], DASHES = ["", "7 4", "2 4"];

function number(value) {
  if (!Number.isFinite(value)) return "too large";
  if (value !== 0 && (Math.abs(value) >= 1e4 || Math.abs(value) < 1e-3)) return value.toExponential(0);
  return String(Number(value.toPrecision(3)));
}
const power = (rate) => "2^" + (Math.round(Math.log2(rate) * 10) / 10);

function element(name, attributes, text) {
  const made = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function axis(values, log, start, end) {
  const places = values.map((v) => (log ? Math.log2(v) : v));
  let low = Math.min(...places), high = Math.max(...places);
  if (high - low < (log ? 2 : 0.1)) { low -= log ? 1 : 0.05; high += log ? 1 : 0.05; }
  const pad = 0.05 * (high - low);
  low -= pad; high += pad;
  const at = (v) => start + (((log ? Math.log2(v) : v) - low) / (high - low)) * (end - start);
  const step = log ? Math.max(1, Math.ceil((high - low) / 6)) : niceStep((high - low) / 5);
  const ticks = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) ticks.push(log ? Math.pow(2, k * step) : Number((k * step).toPrecision(12)));
  return { at, ticks };
}

function niceStep(rough) {
  const size = Math.pow(10, Math.floor(Math.log10(rough)));
  return [1, 2, 5, 10].map((f) => f * size).find((f) => f >= rough);
}

// lines: {label, points: [[x, y]], dots: bool}; marks: [[x, y]]
function draw(id, spec) {
  const all = spec.lines.flatMap((line) => line.points);
  const x = axis(all.map((p) => p[0]), spec.logX, M.left, W - M.right);
  const y = axis(all.map((p) => p[1]), spec.logY, H - M.bottom, M.top + 17 * spec.lines.length + 8);
  const svg = element("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": spec.says });
  for (const tick of y.ticks) {
    svg.append(element("line", { class: "grid", x1: M.left, x2: W - M.right, y1: y.at(tick), y2: y.at(tick) }));
    svg.append(element("text", { x: M.left - 6, y: y.at(tick) + 4, "text-anchor": "end" }, number(tick)));
  }
  for (const tick of x.ticks) svg.append(element("text", { x: x.at(tick), y: H - M.bottom + 18, "text-anchor": "middle" }, spec.rates ? power(tick) : number(tick)));
  svg.append(element("text", { x: (W + M.left) / 2, y: H - 8, "text-anchor": "middle" }, spec.x));
  spec.lines.forEach((line, i) => {
    const ink = INKS[i % 3], places = line.points.map((p) => [x.at(p[0]).toFixed(1), y.at(p[1]).toFixed(1)]);
    if (!line.dots) svg.append(element("polyline", { class: ink, fill: "none", "stroke-width": 2.5, "stroke-dasharray": DASHES[i % 3], points: places.map((p) => p.join(",")).join(" ") }));
    if (line.dots || line.points.length < 30) for (const p of places) svg.append(element("circle", { class: "fill-" + ink, cx: p[0], cy: p[1], r: line.dots ? 4 : 2.5 }));
    svg.append(element("text", { x: W - M.right - 4, y: M.top + 4 + 17 * i, "text-anchor": "end", class: "fill-" + ink }, line.label));
  });
  for (const [mx, my] of spec.marks || []) svg.append(element("circle", { class: "two", fill: "none", "stroke-width": 2.5, cx: x.at(mx).toFixed(1), cy: y.at(my).toFixed(1), r: 8 }));
  byId(id).replaceChildren(svg);
}

function state() {
  return {
    loops: Math.pow(2, Number(byId("loops").value)), layers: Number(byId("layers").value),
    strength: Math.pow(2, Number(byId("strength").value)), rule: byId("rule").value,
    norm: byId("norm").value, tied: byId("tied").checked,
  };
}

function update() {
  const s = state(), eps = residualScale(s.rule, s.loops, s.layers, s.strength);
  for (const [key, text] of [["loops", s.loops], ["layers", s.layers], ["strength", number(s.strength)]]) {
    byId(key + "-out").textContent = text;
    byId(key).setAttribute("aria-valuetext", text);
  }
  const sizes = streamSizes(s.rule, s.norm, s.tied, s.loops, s.layers, s.strength);
  const last = sizes[sizes.length - 1], moved = oneStepChange(s.rule, s.loops, s.layers, s.strength);
  drawStream(s, sizes);
  drawChange(s);
  drawAlignment(s);
  const study = drawCurves(s);
  byId("summary").textContent = RULES[s.rule].summary + (/m_L/.test(RULES[s.rule].summary) ? "; here m_L = L" : "");
  byId("said").textContent = `${s.rule}: eps = ${number(eps)}. After ${s.loops} visits the stream is ${number(last)} times its entry; ` +
    `one step moves the output ${number(moved)} times as far as with one loop of one layer, computed${measuredChange(s)}. ${study}`;
}

// Where it was measured: one layer at strength 1, up to 16 loops.
function measuredChange(s) {
  const seen = RECORDED.change[CHANGES[s.rule]] || [], here = seen.find((p) => p[0] === s.loops);
  return here && s.layers === 1 && s.strength === 1 ? ` (measured ${number(here[1] / seen[0][1])})` : "";
}

// How much further a step moves the output at 16 loops than at one, with eps = 1/N.
function measuredGap() {
  const seen = RECORDED.change[CHANGES.looped];
  return number(seen.find((p) => p[0] === 16)[1] / seen[0][1]);
}

function drawStream(s, sizes) {
  const other = s.rule === "none" ? "looped" : "none";
  const compared = streamSizes(other, s.norm, s.tied, s.loops, s.layers, s.strength);
  draw("stream", {
    x: "visit", logX: false, logY: true,
    lines: [{ label: s.rule, points: sizes.map((v, n) => [n, v]) }, { label: other, points: compared.map((v, n) => [n, v]) }],
    says: `Size of the stream: ${number(sizes[0])} at entry, ${number(sizes[sizes.length - 1])} after ${s.loops} visits with ${s.rule}; ${number(compared[s.loops])} with ${other}.`,
  });
}

function drawChange(s) {
  const counts = [1, 2, 4, 8, 16, 32, 64];
  const points = counts.map((n) => [n, oneStepChange(s.rule, n, s.layers, s.strength)]);
  const lines = [{ label: "computed, " + s.rule, points }];
  const seen = RECORDED.change[CHANGES[s.rule]];
  if (seen) lines.push({ label: "measured, L = 1", dots: true, points: seen.map((p) => [p[0], (p[1] / seen[0][1]) * points[0][1]]) });
  draw("change", {
    x: "loops N", logX: true, logY: true, lines, marks: [[s.loops, oneStepChange(s.rule, s.loops, s.layers, s.strength)]],
    says: `Change of the output by one step with ${s.rule}: ${number(points[0][1])} at one loop, ${number(points[6][1])} at 64 loops.`,
  });
}

function drawAlignment(s) {
  const kind = s.tied ? "tied" : "distinct layers", lines = [];
  for (const branch of ["attention", "mlp"]) lines.push({ label: `${branch}, ${kind}`, points: RECORDED.alignment[`${branch}, ${kind}`] });
  draw("alignment", {
    x: "visits apart", logX: false, logY: false, lines,
    says: `Cosine between updates, ${kind}: ` + lines.map((l) => `${l.label} ${number(l.points[0][1])} for neighbours`).join("; ") + ".",
  });
}

function drawCurves(s) {
  const known = RECORDED.curves[s.rule] ? s.rule : "looped", loops = Math.min(s.loops, 16);
  const lines = [{ label: `${known}, N = ${loops}`, points: RECORDED.curves[known][loops] }];
  if (loops > 1) lines.push({ label: "N = 1", points: RECORDED.curves[known][1] });
  const best = RECORDED.optima[known][loops];
  const instead = known !== s.rule ? `No recorded study of ${s.rule}; shown: ${known}. ` : s.loops > 16 ? "Recorded up to N = 16. " : "";
  const says = `${instead}Recorded best rate ${power(best[0])}, loss ${best[1].toFixed(3)} at N = ${loops}.`;
  draw("curves", { x: "learning rate", logX: true, logY: false, rates: true, lines, marks: [best], says });
  return says;
}

const loss = (rule, n) => RECORDED.optima[rule][n][1].toFixed(3), rate = (rule, n) => power(RECORDED.optima[rule][n][0]);
const rises = (rule) => RECORDED.optima[rule][16][1] - RECORDED.optima[rule][1][1];
const direction = (rule) => (rises(rule) < -0.02 ? 0 : rises(rule) > 0.02 ? 2 : 1);
const QUESTIONS = [
  ["Without any scale, how large is the stream after 64 visits, against 1 at entry?", ["about 1", "about 8", "more than 30"], 2,
    () => `${number(streamSizes("none", "pre", true, 64, 1, 1)[64])} in the toy: aligned updates add up like N, not like sqrt(N). The network of chapter 1 gets larger still.`],
  ["1/sqrt(depth) is right for distinct layers. What does it give when one layer is looped 64 times?", ["a flat stream", "growth like sqrt(N)", "growth like N"], 1,
    () => `${number(streamSizes("sqrt", "pre", true, 64, 1, 1)[64])} against ${number(streamSizes("sqrt", "pre", false, 64, 1, 1)[64])} with distinct layers: N eps = sqrt(N).`],
  ["What factor for N does the learning rate need with eps = 1/N?", ["1/N", "1/sqrt(N)", "none"], 2,
    () => `None: computed, one step moves the output ${number(oneStepChange("looped", 64, 1, 1))} times as far at 64 loops as at one; measured, ${measuredGap()} times at 16.`],
  ["In recorded trainings without scale, what happens to the best loss from N = 1 to 16?", ["it falls", "it stays", "it rises"], direction("none"),
    () => `It goes from ${loss("none", 1)} to ${loss("none", 16)}, and the best rate from ${rate("none", 1)} to ${rate("none", 16)}.`],
  ["And with eps = 1/N?", ["it falls", "it stays", "it rises"], direction("looped"),
    () => `It goes from ${loss("looped", 1)} to ${loss("looped", 16)}; the best rate from ${rate("looped", 1)} to ${rate("looped", 16)}.`],
];

function quiz() {
  let right = 0, answered = 0;
  QUESTIONS.forEach(([text, options, correct, why], q) => {
    const box = document.createElement("fieldset");
    box.className = "question";
    const legend = document.createElement("legend"), button = document.createElement("button"), answer = document.createElement("p");
    legend.textContent = `${q + 1}. ${text}`;
    button.type = "button"; button.textContent = "Show the answer"; button.disabled = true;
    answer.className = "answer"; answer.setAttribute("role", "status"); answer.setAttribute("aria-live", "polite");
    box.append(legend);
    options.forEach((option, k) => {
      const label = document.createElement("label"), radio = document.createElement("input");
      radio.type = "radio"; radio.name = "q" + q; radio.value = k;
      radio.addEventListener("change", () => { button.disabled = false; });
      label.append(radio, " " + option);
      box.append(label);
    });
    button.addEventListener("click", () => {
      const chosen = Number(box.querySelector("input:checked").value);
      right += chosen === correct; answered += 1;
      answer.textContent = (chosen === correct ? "Right. " : `Not so: ${options[correct]}. `) + why();
      box.querySelectorAll("input").forEach((radio) => { radio.disabled = true; });
      button.disabled = true;
      byId("score").textContent = `${right} of ${answered} right.`;
    });
    box.append(button, answer);
    byId("questions").append(box);
  });
}

// Trainings run in a worker, made of the trainer's own script; another start ends the one before.
const STEPS = 40, RATES = [-9, -8, -7, -6, -5, -4, -3], WORST = 4;
let worker = null;

function compared(rule) {
  return [...new Set([rule, "looped", "sqrt", "none"])].slice(0, 3);
}

function train(sweeps) {
  const s = state(), layers = Math.min(s.layers, 4), base = Number(byId("rate").value), rates = sweeps ? RATES : [base], rules = compared(s.rule);
  const jobs = rules.flatMap((rule) => rates.map((k) => {
    const row = RULES[rule], hidden = Math.pow(2, k) * Math.pow(layers, row.rate_layers) * Math.pow(s.loops, -row.rate_loops_exponent);
    return { eps: residualScale(rule, s.loops, layers, s.strength), hidden, outer: Math.pow(2, k) };
  }));
  const curves = jobs.map(() => []), where = `N = ${s.loops}, L = ${layers}, strength ${number(s.strength)}`;
  stop();
  worker = new Worker(URL.createObjectURL(new Blob([byId("trainer").textContent], { type: "text/javascript" })));
  byId("stop").disabled = false;
  byId("training-title").textContent = (sweeps ? "Loss after the steps so far, over the base rate, " : `Loss over steps at rate 2^${base}, `) + where;
  byId("trained").textContent = "Training: " + where + ".";
  worker.onmessage = (event) => {
    if (event.data === "done") return finish(rules, rates, curves, where, sweeps);
    event.data.forEach((loss, k) => curves[k].push(loss));
    drawTraining(rules, rates, curves, sweeps);
  };
  worker.postMessage({ jobs, steps: STEPS, loops: s.loops, layers, seed: 1 });
}

const held = (loss) => (loss <= WORST ? loss : WORST);

function drawTraining(rules, rates, curves, sweeps) {
  const lines = rules.map((rule, r) => ({
    label: rule,
    points: sweeps
      ? rates.map((k, i) => [Math.pow(2, k), held(curves[r * rates.length + i].at(-1))])
      : curves[r].map((loss, step) => [step + 1, held(loss)]),
  }));
  const says = rules.map((rule, r) => `${rule}: ${result(rule, rates, curves.slice(r * rates.length, (r + 1) * rates.length), sweeps)}`).join("; ") + ".";
  draw("training", { x: sweeps ? "base learning rate" : "step", logX: sweeps, logY: false, rates: sweeps, lines, says });
  return says;
}

function result(rule, rates, curves, sweeps) {
  const ends = curves.map((curve) => curve.at(-1)), best = ends.indexOf(Math.min(...ends));
  const shown = (loss) => (loss <= WORST ? loss.toFixed(3) : "diverged");
  return sweeps ? `best loss ${shown(ends[best])} at 2^${rates[best]}` : `loss ${shown(ends[0])} after ${curves[0].length} steps`;
}

function finish(rules, rates, curves, where, sweeps) {
  byId("trained").textContent = `${where}. ${drawTraining(rules, rates, curves, sweeps)}`;
  byId("training").dataset.done = "1";
  stop();
}

function stop() {
  if (worker) worker.terminate();
  worker = null;
  byId("stop").disabled = true;
}

byId("go").addEventListener("click", () => train(false));
byId("sweep").addEventListener("click", () => train(true));
byId("stop").addEventListener("click", () => { stop(); byId("trained").textContent = "Stopped."; });
const showRate = () => { const text = "2^" + byId("rate").value; byId("rate-out").textContent = text; byId("rate").setAttribute("aria-valuetext", text); };
byId("rate").addEventListener("input", showRate);
byId("training-controls").addEventListener("submit", (event) => event.preventDefault());
showRate();
for (const name of Object.keys(RULES)) byId("rule").append(new Option(name, name));
byId("gap").textContent = measuredGap();
byId("setting").textContent = RECORDED.setting;
byId("controls").addEventListener("input", update);
byId("controls").addEventListener("submit", (event) => event.preventDefault());
quiz();
update();
document.documentElement.dataset.ready = "1";
