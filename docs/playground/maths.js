// The same formulas as maths.py; RULES holds the exponents of loopscale's table, put in when the page is built.
"use strict";
const BRANCH = 0.6, ALIGNED = { tied: 0.92, distinct: 0 };

function residualScale(rule, loops, layers, strength) {
  const row = RULES[rule];
  return strength / (Math.pow(loops, row.loops_exponent) * Math.pow(layers, row.layers_exponent));
}

function streamSizes(rule, norm, tied, loops, layers, strength) {
  const scale = residualScale(rule, loops, layers, strength) * (norm === "sandwich" ? 1 : BRANCH);
  const c = tied ? ALIGNED.tied : ALIGNED.distinct, found = [];
  for (let n = 0; n <= loops; n++) {
    let log = Math.log(1 + scale * scale * layers * n * (1 + Math.max(n - 1, 0) * c));
    if (norm === "stream") log = 0;
    if (norm === "absent") log = n * layers * Math.log(1 + 2 * scale * c + scale * scale);
    found.push(Math.exp(Math.min(log / 2, 69)));
  }
  return found;
}

function oneStepChange(rule, loops, layers, strength) {
  const row = RULES[rule];
  const rate = Math.pow(layers, row.rate_layers) * Math.pow(loops, -row.rate_loops_exponent);
  return residualScale(rule, loops, layers, strength) * loops * layers * rate;
}
