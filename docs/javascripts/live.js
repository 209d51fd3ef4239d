/* Charts of committed results: <figure class="live"> holds a panel's series as JSON; uPlot draws them. */
"use strict";
(() => {
  const HEIGHT = 260;

  function colours() {
    const style = getComputedStyle(document.body);
    const of = (name) => style.getPropertyValue(name).trim();
    return { text: of("--md-default-fg-color"), grid: of("--md-default-fg-color--lightest") };
  }

  const written = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));

  function options(chart, panel, width) {
    const { text, grid } = colours();
    const axis = { stroke: text, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1 } };
    const series = panel.series.map((line) => ({
      label: line.name,
      stroke: getComputedStyle(document.body).getPropertyValue(`--live-${line.colour}`).trim(),
      width: 2,
      points: { size: 5 },
      value: (_, value) => written(value),
    }));
    return {
      title: panel.title,
      width,
      height: HEIGHT,
      cursor: { sync: { key: chart.title }, focus: { prox: 24 } },
      focus: { alpha: 0.25 },
      scales: { x: { time: false } },
      axes: [
        { ...axis, label: chart.x_label, labelSize: 22 },
        { ...axis, label: chart.y_label, labelSize: 22, size: 54 },
      ],
      series: [{ label: chart.x_label }, ...series],
    };
  }

  // a legend's rows are buttons: the keyboard has to reach them too
  function makeReachable(plot) {
    plot.root.querySelectorAll(".u-legend .u-series:not(:first-child)").forEach((row, place) => {
      const label = row.querySelector("th");
      label.tabIndex = 0;
      label.setAttribute("role", "button");
      label.setAttribute("aria-pressed", "true");
      const toggled = () => label.setAttribute("aria-pressed", String(plot.series[place + 1].show));
      label.addEventListener("click", () => setTimeout(toggled));
      label.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        plot.setSeries(place + 1, { show: !plot.series[place + 1].show });
        toggled();
      });
    });
  }

  function draw(figure) {
    const chart = JSON.parse(figure.querySelector("script").textContent);
    const home = figure.querySelector(".live-panels");
    // all places first: how wide one is depends on how many there are
    home.replaceChildren(...chart.panels.map(() => document.createElement("div")));
    for (const [number, panel] of chart.panels.entries()) {
      const place = home.children[number];
      const data = [panel.x, ...panel.series.map((line) => line.y)];
      makeReachable(new uPlot(options(chart, panel, place.clientWidth), data, place));
    }
  }

  function drawAll() {
    document.querySelectorAll("figure.live").forEach(draw);
  }

  drawAll();
  let waiting = 0;
  const again = () => {
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 100);
  };
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth !== width) again();
    width = window.innerWidth;
  });
  new MutationObserver(again).observe(document.body, { attributes: true, attributeFilter: ["data-md-color-scheme"] });
})();
