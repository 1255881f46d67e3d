"use strict";
// Draws the charts of the page: panels are placed by the width at hand, colours follow the reader's light or dark mode.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const coarse = matchMedia("(pointer: coarse)");
  const said = document.getElementById("said");
  const charts = JSON.parse(document.getElementById("charts").textContent).map((spec) => ({
    spec, box: document.getElementById(spec.name), hidden: new Set(), at: null, width: 0,
  }));
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  // Swap every colour of the light page by its partner for the dark one.
  const themed = (value, partners) => {
    if (typeof value === "string") return partners[value] || value;
    if (Array.isArray(value)) return value.map((item) => themed(item, partners));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) =>
        [key, key === "hovertext" || key === "x" || key === "y" ? item : themed(item, partners)]));
    }
    return value;
  };

  // Lay the panels out in as many columns as the width allows, and keep the tick labels of the outer ones only.
  const arrange = (spec, layout, width) => {
    const narrow = width < 560;
    const margin = { l: narrow ? 58 : 66, r: 14, t: spec.titled ? 40 : 18, b: 58 };
    const most = spec.panels === 1 ? 1 : Math.max(1, Math.floor(width / 290));
    const rows = Math.ceil(spec.panels / most);
    const columns = Math.ceil(spec.panels / rows);
    const each = narrow ? 230 : columns === 1 && spec.panels > 1 ? 240 : spec.panels === 1 ? 330 : 320;
    const gapX = 18 / (width - margin.l - margin.r);
    const inner = rows * each + (rows - 1) * 62;
    const wide = (1 - gapX * (columns - 1)) / columns;
    for (let i = 0; i < spec.panels; i++) {
      const column = i % columns, row = Math.floor(i / columns), key = i ? String(i + 1) : "";
      const x = layout["xaxis" + key], y = layout["yaxis" + key];
      const top = 1 - row * (each + 62) / inner;
      x.domain = [column * (wide + gapX), Math.min(1, column * (wide + gapX) + wide)];
      y.domain = [Math.max(0, top - each / inner), top];
      const lowest = i + columns >= spec.panels;
      x.title = { text: lowest ? spec.x_title : "", standoff: 8, font: { size: 13 } };
      y.title = { text: column === 0 ? spec.y_title : "", standoff: 6, font: { size: 13 } };
      y.showticklabels = column === 0;
      for (const axis of [x, y]) {
        Object.assign(axis, { gridcolor: css("--grid"), linecolor: css("--line"), tickcolor: css("--line"),
          showline: true, fixedrange: coarse.matches, tickfont: { size: 12, color: css("--muted") } });
      }
    }
    return { margin, height: inner + margin.t + margin.b, width };
  };

  const draw = (chart) => {
    const width = chart.box.clientWidth;
    const partners = dark.matches ? chart.spec.dark : {};
    const data = themed(chart.spec.data, partners).map((trace) =>
      ({ ...trace, visible: !chart.hidden.has(trace.legendgroup) }));
    const layout = themed(structuredClone(chart.spec.layout), partners);
    Object.assign(layout, arrange(chart.spec, layout, width), {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: css("--sans"), size: 13, color: css("--ink") },
      hoverlabel: { bgcolor: css("--card"), bordercolor: css("--muted"), align: "left",
        font: { family: css("--sans"), size: 13, color: css("--ink") } },
      dragmode: coarse.matches ? false : "zoom", uirevision: "keep",
    });
    chart.width = width;
    Plotly.react(chart.box, data, layout, {
      displaylogo: false, displayModeBar: coarse.matches ? false : "hover", doubleClick: "reset",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"],
    });
  };

  // What a hover label says, as plain words for the live region.
  const plain = (text) => text.replace(/<br>/g, ", ").replace(/<[^>]*>/g, "")
    .replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");

  const step = (chart, event) => {
    const lines = chart.spec.data.map((trace, curve) => ({ trace, curve }))
      .filter(({ trace }) => trace.hovertext && trace.x.length && !chart.hidden.has(trace.legendgroup));
    const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (event.key === "Escape") { Plotly.Fx.unhover(chart.box); chart.at = null; return; }
    if (!move || !lines.length) return;
    event.preventDefault();
    const [line, point] = chart.at || [0, move[0] ? 0 : -1];
    const next = Math.min(Math.max(line + move[0], 0), lines.length - 1);
    const { trace, curve } = lines[next];
    chart.at = [next, Math.min(Math.max(point + move[1], 0), trace.x.length - 1)];
    const key = (trace.xaxis || "x") + (trace.yaxis || "y");
    Plotly.Fx.hover(chart.box, [{ curveNumber: curve, pointNumber: chart.at[1] }], [key]);
    said.textContent = plain(trace.hovertext[chart.at[1]]);
  };

  for (const chart of charts) {
    draw(chart);
    chart.box.addEventListener("keydown", (event) => step(chart, event));
    new ResizeObserver(() => { if (Math.abs(chart.box.clientWidth - chart.width) > 1) draw(chart); }).observe(chart.box);
  }
  dark.addEventListener("change", () => charts.forEach(draw));
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-chart]");
    if (!button) return;
    const chart = charts.find(({ spec }) => spec.name === button.dataset.chart);
    const shown = button.getAttribute("aria-pressed") === "true";
    button.setAttribute("aria-pressed", String(!shown));
    chart.hidden[shown ? "add" : "delete"](button.dataset.group);
    draw(chart);
  });
  document.documentElement.dataset.ready = "true";
})();
