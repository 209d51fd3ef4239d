// assayCharts.plane: paths of one metric against another, linked with the panels of their group (charts.js).
//
// spec: {title, xLabel, yLabel, xName, yName, steps: [..], series: [{label, slot, seed, x, y}], levels: [{label, x or y}]}.
assayCharts.plane = (() => {
  "use strict";
  const { group, number, parts } = assayCharts;
  const { frame, options, axisOf, level, near, dot, lines, levelsIn, withSeeds, colour, colourOf, dashOf, known, follow, NEAR, FADED } = parts;

  function ring(u, x, y, stroke) {
    u.ctx.beginPath();
    u.ctx.arc(x, y, 8 * devicePixelRatio, 0, 2 * Math.PI);
    u.ctx.strokeStyle = stroke;
    u.ctx.lineWidth = 1.5 * devicePixelRatio;
    u.ctx.stroke();
  }

  // One path for each series, from a ring at its first point to a dot where the group is pinned.
  function plane(parent, spec, shared = group()) {
    const { box, plot, readout } = frame(parent, spec);
    const all = withSeeds(spec.series);
    const rows = lines(readout, all, shared);
    const axes = { x: axisOf([], false), y: axisOf([], false) };
    const ends = (values) => [values.reduce((a, b) => Math.min(a, b), Infinity), values.reduce((a, b) => Math.max(a, b), -Infinity)];
    const valuesOn = (axis, series) => series.flatMap((each) => each[axis]).filter(known);
    const axisOfLevel = (each) => (known(each.y) ? "y" : "x");
    const levelsShown = levelsIn(readout, spec.levels ?? [],
      (each) => near([each[axisOfLevel(each)]], ...ends(valuesOn(axisOfLevel(each), all))).length > 0,
      (each) => each[axisOfLevel(each)]);
    const range = (axis) => () => {
      let [low, high] = ends(valuesOn(axis, all.filter(shared.isShown)));
      if (low > high) return [0, 1];
      const levels = near(levelsShown.map((each) => each[axis]), low, high);
      [low, high] = ends([low, high, ...levels]);
      const room = 0.06 * (high - low) || 0.5;
      return [low - room, high + room];
    };
    const isFaded = (each) => shared.highlighted !== null && each.label !== shared.highlighted;
    function indexAt(x) {
      let found = 0;
      spec.steps.forEach((step, i) => { if (x !== null && step <= x) found = i; });
      return x === null ? spec.steps.length - 1 : found;
    }
    // A series that has no point at this step stays at its last one.
    function pointOf(each, index) {
      for (let i = index; i >= 0; i--) if (known(each.x[i]) && known(each.y[i])) return i;
      return -1;
    }
    function draw(u) {
      const at = (each, i) => [u.valToPos(each.x[i], "x", true), u.valToPos(each.y[i], "y", true)];
      for (const each of levelsShown) level(u, each);
      u.ctx.save();
      for (const each of all.filter(shared.isShown)) {
        const stroke = colour(colourOf(each));
        u.ctx.globalAlpha = isFaded(each) ? FADED : each.thin ? 0.55 : 1;
        u.ctx.strokeStyle = stroke;
        u.ctx.lineWidth = (each.thin ? 1 : each.label === shared.highlighted ? 3 : 2) * devicePixelRatio;
        u.ctx.setLineDash(dashOf(each).map((length) => length * devicePixelRatio));
        u.ctx.beginPath();
        let started = false;
        each.x.forEach((_, i) => {
          if (!known(each.x[i]) || !known(each.y[i])) return;
          started ? u.ctx.lineTo(...at(each, i)) : u.ctx.moveTo(...at(each, i));
          started = true;
        });
        u.ctx.stroke();
        u.ctx.setLineDash([]);
        if (each.thin) continue;
        arrows(u, each.x.flatMap((x, i) => (known(x) && known(each.y[i]) ? [at(each, i)] : [])), stroke);
        const first = each.x.findIndex((x, i) => known(x) && known(each.y[i])), here = pointOf(each, indexAt(shared.at));
        if (first >= 0) dot(u, ...at(each, first), colour("ink"), 4.5, false);
        const lowest = each.y.reduce((best, y, i) => (known(y) && known(each.x[i]) && (best < 0 || y < each.y[best]) ? i : best), -1);
        if (lowest >= 0) ring(u, ...at(each, lowest), stroke);
        if (here >= 0) dot(u, ...at(each, here), stroke, 5.5, true);
      }
      u.ctx.restore();
    }
    // Heads along a path of points in canvas pixels.
    function arrows(u, points, fill) {
      const lengths = points.slice(1).map(([x, y], i) => Math.hypot(x - points[i][0], y - points[i][1]));
      const total = lengths.reduce((a, b) => a + b, 0), size = 5 * devicePixelRatio;
      for (const share of [0.2, 0.5, 0.8]) {
        let travelled = 0;
        const i = lengths.findIndex((length) => (travelled += length) >= share * total);
        if (i < 0 || lengths[i] < 2 * size) continue;
        const [[x, y], [nextX, nextY]] = [points[i], points[i + 1]], angle = Math.atan2(nextY - y, nextX - x);
        const part = (share * total - (travelled - lengths[i])) / lengths[i];
        u.ctx.save();
        u.ctx.translate(x + part * (nextX - x), y + part * (nextY - y));
        u.ctx.rotate(angle);
        u.ctx.fillStyle = fill;
        u.ctx.beginPath();
        u.ctx.moveTo(1.4 * size, 0);
        u.ctx.lineTo(-size, -size);
        u.ctx.lineTo(-size, size);
        u.ctx.fill();
        u.ctx.restore();
      }
    }
    const height = (width) => Math.round(Math.min(420, Math.max(260, width * 0.55)));
    const cursor = { x: false, y: false, drag: { x: false, y: false, setScale: false }, points: { show: false } };
    const chart = new uPlot(
      options(spec, 320, height(320), axes, { x: range("x"), y: range("y") }, cursor, { draw: [draw] }, [{}, { points: { show: false } }]),
      [[0, 1], [null, null]], plot);
    const member = {
      box, chart,
      point() { member.redraw(); },
      refit() {
        rows.show();
        chart.setData(chart.data, true);
        member.redraw();
      },
      redraw() {
        chart.redraw(false);
        rows.say((each) => {
          const here = pointOf(each, indexAt(shared.at));
          return here < 0 ? "–" : `${spec.xName} ${number(each.x[here])}, ${spec.yName} ${number(each.y[here])}`;
        }, isFaded);
      },
    };
    chart.over.addEventListener("mousemove", () => {
      let best = null, distance = NEAR;
      for (const each of all.filter(shared.isShown))
        each.x.forEach((x, i) => {
          if (!known(x) || !known(each.y[i])) return;
          const away = Math.hypot(chart.valToPos(x, "x") - chart.cursor.left, chart.valToPos(each.y[i], "y") - chart.cursor.top);
          if (away < distance) [best, distance] = [{ label: each.label, step: spec.steps[i] }, away];
        });
      shared.point(best && best.step);
      shared.highlight(best && best.label);
    });
    chart.over.addEventListener("mouseleave", () => { shared.point(null); shared.highlight(null); });
    follow(plot, chart, height);
    shared.add(member);
    member.refit();
    return member;
  }

  return plane;
})();
