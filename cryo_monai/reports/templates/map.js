"use strict";
(() => {
  const data = JSON.parse(document.getElementById("map-data").textContent);
  const byId = (id) => document.getElementById(id);
  const count = data.labels.length;
  const isWrong = (row) => data.labels[row] !== data.predicted[row];

  // Shapes as matplotlib names them -> Chart.js.
  const SHAPES = {
    o: ["circle", 0], s: ["rect", 0], "^": ["triangle", 0], D: ["rectRot", 0], v: ["triangle", 180],
    P: ["cross", 0], X: ["crossRot", 0], "*": ["star", 0],
  };
  const LINES = ["cross", "crossRot", "star"]; // drawn without a surface
  const INK = "#1d2329";

  const boxes = data.classes.map((group, number) => {
    const label = document.createElement("label");
    const box = document.createElement("input");
    box.type = "checkbox";
    box.checked = true;
    const picture = document.createElement("canvas");
    drawShape(picture, group);
    const name = document.createElement("span");
    name.textContent = group.name;
    label.append(box, picture, name);
    byId("map-classes").append(label);
    box.addEventListener("change", update);
    return box;
  });

  function drawShape(canvas, group) {
    const size = 16, ratio = 2;
    canvas.width = canvas.height = size * ratio;
    canvas.style.width = canvas.style.height = `${size}px`;
    canvas.setAttribute("aria-hidden", "true");
    const context = canvas.getContext("2d");
    context.scale(ratio, ratio);
    const [style, rotation] = SHAPES[group.shape];
    const lines = LINES.includes(style);
    context.fillStyle = group.colour;
    context.strokeStyle = lines ? group.colour : INK;
    context.lineWidth = lines ? 2 : 0.7;
    Chart.helpers.drawPoint(context, { pointStyle: style, rotation, radius: 5.5, borderWidth: context.lineWidth }, size / 2, size / 2);
  }

  let chosen = null;
  const width = () => byId("map-canvas").clientWidth;
  const radius = () => (count > 800 ? 3.5 : 5) * (width() < 500 ? 0.85 : 1);
  const rows = (label) => {
    const verdict = byId("map-verdict").value;
    if (!boxes[label].checked) return [];
    return data.labels.flatMap((other, row) =>
      other === label && (verdict === "all" || (verdict === "wrong") === isWrong(row)) ? [row] : []);
  };
  const style = (group) => {
    const [pointStyle, rotation] = SHAPES[group.shape];
    const lines = LINES.includes(pointStyle);
    return {
      pointStyle, rotation,
      backgroundColor: group.colour,
      borderColor: lines ? group.colour : "#1d2329b0",
      borderWidth: lines ? 2 : 0.6,
      radius,
      hoverRadius: () => radius() + 2,
      hoverBorderWidth: lines ? 3 : 1.5,
      hoverBorderColor: lines ? group.colour : INK,
    };
  };
  // Rings of mistakes, and of the volume that is chosen, above the points.
  const rings = {
    id: "rings",
    afterDatasetsDraw(chart) {
      const context = chart.ctx;
      const ring = (point, size, line, colour) => {
        context.beginPath();
        context.arc(point.x, point.y, size, 0, 2 * Math.PI);
        context.lineWidth = line;
        context.strokeStyle = colour;
        context.stroke();
      };
      context.save();
      chart.data.datasets.forEach((dataset, number) => {
        chart.getDatasetMeta(number).data.forEach((point, index) => {
          const row = dataset.data[index].row;
          if (isWrong(row)) ring(point, radius() + 2.5, 1.4, INK);
          if (row === chosen) ring(point, radius() + 5.5, 3, "#0b72c4");
        });
      });
      context.restore();
    },
  };
  const axis = { display: true, min: -1.08, max: 1.08, ticks: { display: false }, grid: { display: false, drawTicks: false }, border: { display: false } };
  const chart = new Chart(byId("map-canvas"), {
    type: "scatter",
    data: { datasets: data.classes.map((group) => ({ label: group.name, data: [], ...style(group) })) },
    options: {
      animation: false,
      maintainAspectRatio: false,
      events: ["mousemove", "click", "touchstart"],
      interaction: { mode: "nearest", intersect: false },
      plugins: { legend: { display: false }, tooltip: { enabled: false } },
      scales: { x: axis, y: { ...axis } },
      onHover: (event, elements) => {
        const near = elements.find(({ element }) => Math.hypot(element.x - event.x, element.y - event.y) < 18);
        if (near) choose(chart.data.datasets[near.datasetIndex].data[near.index].row);
      },
      onResize: (self) => { if (self.data) { scales(self); self.update("none"); } },
    },
    plugins: [rings],
  });

  // One scale for both axes: distances are comparable in every direction.
  function scales(self) {
    const box = self.canvas.parentElement;
    const wide = box.clientWidth / box.clientHeight;
    const { points } = data.projections[Number(byId("map-method").value)];
    const reach = (axis) => Math.max(...points.map((point) => Math.abs(point[axis])));
    const half = 1.08 * Math.max(reach(0) / wide, reach(1), 0.01);
    Object.assign(self.options.scales.x, { min: -half * wide, max: half * wide });
    Object.assign(self.options.scales.y, { min: -half, max: half });
  }

  const visible = () => chart.data.datasets.flatMap((dataset) => dataset.data);

  function update() {
    const projection = data.projections[Number(byId("map-method").value)];
    chart.data.datasets.forEach((dataset, label) => {
      dataset.data = rows(label).map((row) => ({ x: projection.points[row][0], y: projection.points[row][1], row }));
    });
    scales(chart);
    const shown = visible();
    if (chosen !== null && !shown.some((point) => point.row === chosen)) choose(null);
    chart.update("none");
    const wrong = shown.filter((point) => isWrong(point.row)).length;
    byId("map-count").textContent = `${shown.length} of ${count} points, ${wrong} of them mistakes`;
    byId("map-description").textContent = projection.description;
  }

  const sheets = data.sheets && data.sheets.images.map((uri) => {
    const image = new Image();
    image.src = uri;
    return image;
  });

  function drawSlices(row) {
    const { width: tileWidth, height: tileHeight, columns, perSheet } = data.sheets;
    const image = sheets[Math.floor(row / perSheet)];
    const place = row % perSheet;
    const canvas = byId("map-slices");
    const zoom = Math.max(1, Math.ceil(600 / tileWidth));
    canvas.width = tileWidth * zoom;
    canvas.height = tileHeight * zoom;
    const paint = () => {
      if (chosen !== row) return;
      const context = canvas.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(image, (place % columns) * tileWidth, Math.floor(place / columns) * tileHeight, tileWidth, tileHeight,
        0, 0, canvas.width, canvas.height);
      canvas.dataset.row = row;
    };
    image.decode().then(paint);
  }

  function choose(row) {
    if (row === chosen) return;
    chosen = row;
    byId("map-volume").hidden = row === null;
    byId("map-hint").hidden = row !== null;
    chart.draw();
    if (row === null) return;
    const truth = data.classes[data.labels[row]].name;
    const taken = data.classes[data.predicted[row]].name;
    byId("map-true").textContent = truth;
    byId("map-predicted").textContent = isWrong(row) ? `${taken} (wrong)` : `${taken} (right)`;
    byId("map-probability").textContent = data.probabilities[row].toFixed(3);
    byId("map-path").textContent = data.paths[row];
    byId("map-slices").hidden = !sheets;
    document.querySelector("#map .axes").hidden = !sheets;
    if (sheets) {
      byId("map-slices").setAttribute("aria-label", `Slices xy, xz and yz of ${data.paths[row]}`);
      drawSlices(row);
    }
  }

  const DIRECTIONS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  byId("map-canvas").addEventListener("keydown", (event) => {
    const shown = visible();
    if (!shown.length) return;
    const ordered = () => [...shown].sort((a, b) => a.x - b.x || a.y - b.y);
    const direction = DIRECTIONS[event.key];
    let next = null;
    if (event.key === "Home") next = ordered()[0];
    else if (event.key === "End") next = ordered().at(-1);
    else if (event.key === "Escape") { choose(null); return; }
    else if (!direction) return;
    else if (chosen === null) next = ordered()[0];
    else {
      const from = shown.find((point) => point.row === chosen);
      let best = Infinity;
      for (const point of shown) {
        const dx = point.x - from.x, dy = point.y - from.y;
        const along = dx * direction[0] + dy * direction[1];
        const across = Math.abs(dx * direction[1]) + Math.abs(dy * direction[0]);
        // What lies straight ahead is nearer than what lies aside.
        const cost = along + 2.5 * across;
        if (point.row !== chosen && along > 0 && cost < best) { best = cost; next = point; }
      }
    }
    event.preventDefault();
    if (next) choose(next.row);
  });
  byId("map-canvas").addEventListener("focus", () => {
    if (chosen === null && visible().length && byId("map-canvas").matches(":focus-visible")) {
      choose([...visible()].sort((a, b) => a.x - b.x || a.y - b.y)[0].row);
    }
  });
  for (const id of ["map-method", "map-verdict"]) byId(id).addEventListener("change", update);
  byId("map-every").addEventListener("click", () => { boxes.forEach((box) => { box.checked = true; }); update(); });
  byId("map-none").addEventListener("click", () => { boxes.forEach((box) => { box.checked = false; }); update(); });
  update();
})();
