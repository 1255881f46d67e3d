"use strict";
// Draws the figures of the page: panels are laid out by the width at hand, colours follow the reader's light or dark mode.
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const said = document.getElementById("said"), tip = document.getElementById("tip");
  const { themes, figures } = JSON.parse(document.getElementById("figures").textContent);
  const MARGIN = 92, GAP = 18;

  // As many panels in a row as the width allows, the rows as full as can be.
  const arranged = (figure, width) => {
    const spec = structuredClone(figure.spec), inside = spec.spec || spec;
    const most = Math.max(1, Math.floor((width - MARGIN) / 230));
    const columns = Math.ceil(figure.panels / Math.ceil(figure.panels / most));
    inside.width = Math.floor((width - MARGIN - GAP * (columns - 1)) / columns);
    if (width < 560) inside.height = Math.min(inside.height, figure.panels > 1 ? 220 : 260);
    if (spec.spec) spec.columns = columns;
    return spec;
  };

  const show = (figure, datum, x, y) => {
    tip.textContent = datum.said;
    tip.hidden = false;
    tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${y + 16 + tip.offsetHeight > innerHeight ? y - tip.offsetHeight - 12 : y + 16}px`;
  };
  const hide = () => { tip.hidden = true; };

  const draw = async (figure) => {
    figure.width = figure.box.clientWidth;
    const scheme = dark.matches ? "dark" : "light", theme = themes[scheme];
    const config = { ...theme, range: { ...theme.range, category: figure.inks[scheme] } };
    const { view } = await embed(figure.box, arranged(figure, figure.width),
      { config, actions: false, ast: true, tooltip: false, hover: false, renderer: "svg", defaultStyle: false });
    figure.view = view;
    view.addEventListener("mousemove", (event, item) =>
      item?.datum?.said ? show(figure, item.datum, event.clientX, event.clientY) : hide());
    view.addEventListener("mouseout", hide);
    await view.signal("hidden", [...figure.hidden]).signal("at", figure.at ?? -1).runAsync();
  };

  // Arrow keys go from point to point along a line, and from line to line.
  const step = (figure, event) => {
    if (event.key === "Escape") { figure.at = -1; said.textContent = ""; figure.view.signal("at", -1).runAsync(); hide(); }
    const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    const lines = new Map();
    for (const row of figure.spec.data.values) {
      if (!row.said || figure.hidden.has(row.series)) continue;
      const key = `${row.panel}\n${row.series}`;
      lines.set(key, [...(lines.get(key) || []), row]);
    }
    const all = [...lines.values()];
    if (!move || !all.length) return;
    event.preventDefault();
    const line = all.findIndex((rows) => rows.some((row) => row.id === figure.at));
    const next = line < 0 ? 0 : Math.min(Math.max(line + move[0], 0), all.length - 1);
    const point = line < 0 ? 0 : all[line].findIndex((row) => row.id === figure.at) + move[1];
    const row = all[next][Math.min(Math.max(point, 0), all[next].length - 1)];
    figure.at = row.id;
    said.textContent = row.said.replaceAll("\n", ", ");
    figure.view.signal("at", row.id).runAsync();
    const box = figure.box.getBoundingClientRect();
    show(figure, row, box.left + 60, Math.max(box.top, 0));
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-figure]");
    if (!button) return;
    const figure = figures.find(({ name }) => name === button.dataset.figure);
    const shown = button.getAttribute("aria-pressed") === "true";
    button.setAttribute("aria-pressed", String(!shown));
    figure.hidden[shown ? "add" : "delete"](button.dataset.series);
    figure.view.signal("hidden", [...figure.hidden]).runAsync();
  });
  dark.addEventListener("change", () => figures.forEach(draw));

  const start = async () => {
    for (const figure of figures) {
      Object.assign(figure, { box: document.getElementById(figure.name), hidden: new Set(), at: -1, width: 0 });
      await draw(figure);
      figure.box.addEventListener("keydown", (event) => step(figure, event));
      figure.box.addEventListener("blur", hide);
      new ResizeObserver(() => { if (Math.abs(figure.box.clientWidth - figure.width) > 1) draw(figure); })
        .observe(figure.box);
    }
    document.documentElement.dataset.ready = "true";
  };
  start();
})();
