// The ratios as bars, for the README: readable on a light and on a dark page.

const WIDTH = 760, LABELS = 270, RIGHT = 130, BAR = 18, ROW = 30, TOP = 52;
const escape = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");

/** An SVG of each target's requests a second, as a share of its floor's. */
export function chart(rows) {
  const shown = rows.filter(({ name }) => name !== "control");
  const groups = [
    { title: "Requests a second, as a share of a JavaScript hello world", rows: shown.filter(({ against }) => against === "hello") },
    { title: "As a share of a Worker that only passes on to the same origin", rows: shown.filter(({ against }) => against === "passthrough") },
  ].filter(({ rows }) => rows.length);
  const most = Math.max(1, ...shown.map(({ ratio }) => ratio));
  const scale = (WIDTH - LABELS - RIGHT) / most;
  let y = 24;
  const parts = [];
  for (const group of groups) {
    parts.push(`<text class="title" x="12" y="${y}">${escape(group.title)}</text>`);
    y += TOP - 24;
    for (const row of group.rows) {
      const ours = row.name.startsWith("tollgate");
      const width = Math.max(2, row.ratio * scale);
      parts.push(
        `<text x="${LABELS - 10}" y="${y + 13}" text-anchor="end"${ours ? ' class="ours"' : ""}>${escape(row.title)}</text>`,
        `<rect class="${ours ? "bar ours" : "bar"}" x="${LABELS}" y="${y}" width="${width.toFixed(1)}" height="${BAR}" rx="2"/>`,
        `<text x="${(LABELS + width + 8).toFixed(1)}" y="${y + 13}">${row.ratio.toFixed(2)} <tspan class="faint">${Math.round(row.per_second).toLocaleString("en")}/s</tspan></text>`,
      );
      y += ROW;
    }
    y += 24;
  }
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${y - 12}" width="${WIDTH}" height="${y - 12}" role="img" aria-label="Requests a second of Tollgate and its peers">
<style>
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600 } text.ours { font-weight: 600 } .faint { fill: #656d76 }
  .bar { fill: #afb8c1 } .bar.ours { fill: #0969da }
  @media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .faint { fill: #8d96a0 } .bar { fill: #484f58 } .bar.ours { fill: #4493f8 } }
</style>
${parts.join("\n")}
</svg>
`;
}
