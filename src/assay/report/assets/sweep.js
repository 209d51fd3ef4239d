// The pages of sweeps and of comparisons: a choice of map, linked curves, golden against tokens. Data: see
// sweep_report.py and comparison_report.py. Text goes in by textContent alone.
(() => {
  "use strict";
  const { element, swatch, number, parts } = assayCharts;
  const data = JSON.parse(document.getElementById("data").textContent);
  const shared = assayCharts.group(), scatters = [];
  document.querySelectorAll(".scripted").forEach((each) => { each.hidden = false; });

  // Of the parts of a page with data-NAME only those of the chosen value are shown.
  function choices() {
    for (const set of document.querySelectorAll("[data-choice]")) {
      const name = set.dataset.choice;
      const show = () => {
        const { value } = set.querySelector("input:checked");
        document.querySelectorAll(`[data-${name}]`).forEach((each) => { each.hidden = each.dataset[name] !== value; });
      };
      set.addEventListener("change", show);
      show();
    }
  }

  // Points with a name each; the front is joined by steps, all others are faint.
  function scatter(parent, spec) {
    const { plot, readout } = parts.frame(parent, { ...spec, yLabel: "golden, nats" });
    const axes = { x: parts.axisOf(spec.points.map((point) => point.x), true), y: parts.axisOf([], false) };
    const members = spec.points.filter((point) => point.front).sort((a, b) => a.x - b.x);
    const range = (values, share) => {
      const [low, high] = [Math.min(...values), Math.max(...values)], room = share * (high - low) || 0.5;
      return () => [low - room, high + room];
    };
    const ranges = { x: range(spec.points.map((point) => axes.x.place(point.x)), 0.04), y: range(spec.points.map((point) => point.y), 0.07) };
    let pointed = null;
    function draw(u) {
      const at = (point) => [u.valToPos(axes.x.place(point.x), "x", true), u.valToPos(point.y, "y", true)];
      u.ctx.save();
      u.ctx.strokeStyle = parts.colour("muted");
      u.ctx.lineWidth = 1.5 * devicePixelRatio;
      u.ctx.beginPath();
      members.forEach((point, i) => {
        const [x, y] = at(point);
        if (i) { u.ctx.lineTo(x, at(members[i - 1])[1]); u.ctx.lineTo(x, y); } else u.ctx.moveTo(x, y);
      });
      u.ctx.stroke();
      for (const point of [...spec.points.filter((each) => !each.front), ...members]) {
        u.ctx.globalAlpha = point.front || point === pointed ? 1 : 0.3;
        parts.dot(u, ...at(point), parts.colour(parts.arm(point.slot)), point === pointed ? 7 : 4.5, true);
      }
      u.ctx.restore();
    }
    const said = element("p", { class: "note pointed" }, "Point at a dot to read it.");
    for (const each of spec.arms) {
      const item = element("li");
      item.append(swatch(each.slot), element("span", { class: "label" }, each.name));
      readout.append(item);
    }
    readout.before(said);
    const height = (width) => Math.round(Math.min(420, Math.max(260, width * 0.45)));
    const cursor = { x: false, y: false, drag: { x: false, y: false, setScale: false }, points: { show: false } };
    const chart = new uPlot(
      parts.options({ ...spec, yLabel: "golden, nats" }, 320, height(320), axes, ranges, cursor, { draw: [draw] }, [{}, { points: { show: false } }]),
      [[0, 1], [null, null]], plot);
    chart.over.addEventListener("mousemove", () => {
      let best = null, distance = parts.NEAR;
      for (const point of spec.points) {
        const away = Math.hypot(chart.valToPos(axes.x.place(point.x), "x") - chart.cursor.left, chart.valToPos(point.y, "y") - chart.cursor.top)
          + (point.front ? 0 : 2); // of two at one place the member of the front
        if (away < distance) [best, distance] = [point, away];
      }
      if (best === pointed) return;
      pointed = best;
      if (best) {
        const bounds = best.bounds.length ? ` [${best.bounds.map((value) => number(value)).join(", ")}]` : "";
        said.textContent = `${best.name}: golden ${number(best.y)}${bounds}, ${number(best.x, 0)} tokens${best.front ? ", on the front" : ""}`;
      }
      chart.redraw(false);
    });
    parts.follow(plot, chart, height);
    scatters.push(chart);
  }

  const place = document.getElementById("cells");
  for (const panel of data.cells ?? []) assayCharts.panel(place, panel, shared);
  shared.onChange((what, x) => { if (what === "pick") shared.pin(shared.pinned === x ? null : x); });
  for (const each of document.querySelectorAll("[data-front]")) scatter(each, data.fronts[Number(each.dataset.front)]);
  assayControls.copying();
  choices();
  assayControls.theme(() => { shared.redrawNow(); scatters.forEach((chart) => chart.redraw(false)); });
})();
