// A looped network that trains in the browser: pre-norm residual layers, Adam, addition modulo P; the same in PyTorch to 1e-4.
// Runs in a worker (at the end of the file) and under node, where a test compares the two.
"use strict";
const P = 8, D = 16, H = 32; // numbers to add, width of the stream, hidden width

function randoms(seed) { // mulberry32 and Box-Muller
  let a = seed >>> 0;
  const uniform = () => {
    a = (a + 0x6d2b79f5) | 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

// Weights by name. A layer is x + eps W2 tanh(W1 norm(x)); the readout is U norm(x).
function makeNetwork(layers, seed) {
  const normal = randoms(seed), fill = (size, std) => Float64Array.from({ length: size }, () => std * normal());
  const made = { A: fill(P * D, Math.SQRT1_2), B: fill(P * D, Math.SQRT1_2), U: fill(P * D, 1 / Math.sqrt(D)) };
  for (let l = 0; l < layers; l++) {
    made["W1." + l] = fill(H * D, 1 / Math.sqrt(D));
    made["W2." + l] = fill(D * H, 1 / Math.sqrt(H));
  }
  return made;
}

// out = norm(x at [from, from + D)); gives the RMS.
function norm(x, from, out) {
  let sum = 0;
  for (let i = 0; i < D; i++) sum += x[from + i] * x[from + i];
  const rms = Math.sqrt(sum / D + 1e-6);
  for (let i = 0; i < D; i++) out[i] = x[from + i] / rms;
  return rms;
}

// The gradient with respect to x, of g with respect to norm(x) = n, added to dx.
function normBack(g, n, rms, dx) {
  let dot = 0;
  for (let i = 0; i < D; i++) dot += g[i] * n[i];
  dot /= D;
  for (let i = 0; i < D; i++) dx[i] += (g[i] - n[i] * dot) / rms;
}

// Mean loss over all P * P pairs and its gradients, in `grads` (by name, set to zero here).
function lossAndGradients(net, grads, layers, loops, eps) {
  const visits = loops * layers, X = new Float64Array((visits + 1) * D), T = new Float64Array(visits * H);
  const Ns = new Float64Array(visits * D), R = new Float64Array(visits), n = new Float64Array(D);
  const logits = new Float64Array(P), dx = new Float64Array(D), dn = new Float64Array(D), du = new Float64Array(H);
  for (const name in grads) grads[name].fill(0);
  let total = 0;
  for (let a = 0; a < P; a++) for (let b = 0; b < P; b++) {
    for (let i = 0; i < D; i++) X[i] = net.A[a * D + i] + net.B[b * D + i];
    for (let v = 0; v < visits; v++) {
      const W1 = net["W1." + (v % layers)], W2 = net["W2." + (v % layers)], x = v * D;
      R[v] = norm(X, x, n);
      Ns.set(n, x);
      for (let j = 0; j < H; j++) {
        let sum = 0;
        for (let i = 0; i < D; i++) sum += W1[j * D + i] * n[i];
        T[v * H + j] = Math.tanh(sum);
      }
      for (let i = 0; i < D; i++) {
        let sum = 0;
        for (let j = 0; j < H; j++) sum += W2[i * H + j] * T[v * H + j];
        X[x + D + i] = X[x + i] + eps * sum;
      }
    }
    const rms = norm(X, visits * D, n), target = (a + b) % P;
    let top = -Infinity, sum = 0;
    for (let k = 0; k < P; k++) {
      logits[k] = 0;
      for (let i = 0; i < D; i++) logits[k] += net.U[k * D + i] * n[i];
      top = Math.max(top, logits[k]);
    }
    for (let k = 0; k < P; k++) sum += Math.exp(logits[k] - top);
    total += top + Math.log(sum) - logits[target];
    dn.fill(0);
    for (let k = 0; k < P; k++) {
      const g = (Math.exp(logits[k] - top) / sum - (k === target ? 1 : 0)) / (P * P);
      for (let i = 0; i < D; i++) { grads.U[k * D + i] += g * n[i]; dn[i] += g * net.U[k * D + i]; }
    }
    dx.fill(0);
    normBack(dn, n, rms, dx);
    for (let v = visits - 1; v >= 0; v--) {
      const l = v % layers, W1 = net["W1." + l], W2 = net["W2." + l], G1 = grads["W1." + l], G2 = grads["W2." + l];
      du.fill(0);
      for (let i = 0; i < D; i++) {
        const g = eps * dx[i];
        for (let j = 0; j < H; j++) { G2[i * H + j] += g * T[v * H + j]; du[j] += g * W2[i * H + j]; }
      }
      dn.fill(0);
      for (let j = 0; j < H; j++) {
        const t = T[v * H + j], g = du[j] * (1 - t * t);
        for (let i = 0; i < D; i++) { G1[j * D + i] += g * Ns[v * D + i]; dn[i] += g * W1[j * D + i]; }
      }
      normBack(dn, Ns.subarray(v * D, v * D + D), R[v], dx);
    }
    for (let i = 0; i < D; i++) { grads.A[a * D + i] += dx[i]; grads.B[b * D + i] += dx[i]; }
  }
  return total / (P * P);
}

// A training as a generator of losses: Adam (0.9, 0.95, 1e-8), hidden weights at `hidden`, the others at `outer`.
function* training({ loops, layers, eps, hidden, outer, seed }) {
  const net = makeNetwork(layers, seed), like = () => Object.fromEntries(Object.entries(net).map(([k, w]) => [k, new Float64Array(w.length)]));
  const grads = like(), first = like(), second = like();
  for (let step = 1; ; step++) {
    const loss = lossAndGradients(net, grads, layers, loops, eps);
    const c1 = 1 - Math.pow(0.9, step), c2 = 1 - Math.pow(0.95, step);
    for (const name in net) {
      const w = net[name], g = grads[name], m = first[name], s = second[name], rate = name[0] === "W" ? hidden : outer;
      for (let i = 0; i < w.length; i++) {
        m[i] += 0.1 * (g[i] - m[i]);
        s[i] += 0.05 * (g[i] * g[i] - s[i]);
        w[i] -= (rate * (m[i] / c1)) / (Math.sqrt(s[i] / c2) + 1e-8);
      }
    }
    yield { loss, net };
  }
}

// In a worker: {jobs, steps, loops, layers, seed} comes; all jobs advance side by side, a message for every few steps.
function serve() {
  onmessage = (event) => {
    const { jobs, steps, ...shape } = event.data, runs = jobs.map((job) => training({ ...shape, ...job }));
    for (let step = 0; step < steps; step++) postMessage(runs.map((run) => run.next().value.loss));
    postMessage("done");
  };
}
if (typeof WorkerGlobalScope !== "undefined") serve();
if (typeof module !== "undefined") module.exports = { training, makeNetwork, P, D, H };
