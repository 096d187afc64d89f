// The value under the pointer, for every line chart; the page is complete without it.
const tip = document.getElementById("tip");
for (const chart of document.querySelectorAll("svg.chart")) {
  const lines = JSON.parse(chart.querySelector("desc").textContent);
  const cross = document.createElementNS(chart.namespaceURI, "line");
  cross.setAttribute("class", "cross");
  cross.setAttribute("visibility", "hidden");
  chart.append(cross);
  const leave = () => { tip.hidden = true; cross.setAttribute("visibility", "hidden"); };
  chart.addEventListener("pointermove", (event) => {
    const box = chart.getBoundingClientRect(), scale = chart.viewBox.baseVal.width / box.width;
    const x = (event.clientX - box.left) * scale;
    const found = lines.map((line) => [line, line.points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a))]);
    if (!found.length) return leave();
    const at = found[0][1];
    for (const [key, value] of [["x1", at[0]], ["x2", at[0]], ["y1", 14], ["y2", chart.viewBox.baseVal.height - 34]]) cross.setAttribute(key, value);
    cross.setAttribute("visibility", "visible");
    tip.textContent = [at[2], ...found.map(([line, point]) => `${line.label}  ${point[3]}`)].join("\n");
    tip.hidden = false;
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${event.clientY + 16}px`;
  });
  chart.addEventListener("pointerleave", leave);
}
