"""How a report looks: its style sheet, its script and its skeleton, with no logic in them.

The page loads nothing. Its content-security policy forbids every request, and allows only the two scripts whose hashes
it names, so that nothing a recipe or a sample contains could ever run.
"""

from __future__ import annotations

from string import Template

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fafaf8; --card: #ffffff; --ink: #1c1e21; --muted: #5d636b; --line: #e4e4df; --grid: #ececea;
  --mark: #fdf0cf; --key: #1f5fbf; --good: #15803d; --under: #a15c00; --over: #b42318; --unknown: #5d636b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #121417; --card: #1a1d21; --ink: #e8e8e4; --muted: #a0a6ae; --line: #2c3036; --grid: #272b30;
    --mark: #4a3c14; --key: #8ab4f8; --good: #4ade80; --under: #fbbf24; --over: #fb8a7e; --unknown: #a0a6ae;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.02em; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; letter-spacing: -0.01em; margin: 48px 0 14px; }
h3 { font-size: 0.95rem; font-weight: 600; margin: 0 0 6px; }
p { margin: 0; }
.status { color: var(--muted); margin-top: 6px; overflow-wrap: anywhere; }
.facts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 20px 24px;
  margin: 28px 0; padding: 22px 0; border: solid var(--line); border-width: 1px 0;
}
.facts dt { color: var(--muted); font-size: 0.82rem; }
.facts dd { margin: 0; font-size: 1.45rem; font-weight: 600; line-height: 1.25; letter-spacing: -0.01em; }
.facts small { display: block; color: var(--muted); font-size: 0.78rem; font-weight: 400; letter-spacing: 0; }
.fit {
  background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--tone); border-radius: 8px;
  padding: 16px 20px;
}
.fit strong { color: var(--tone); display: block; font-size: 1.05rem; }
.fit strong::first-letter { text-transform: uppercase; }
.good { --tone: var(--good); } .under { --tone: var(--under); }
.over { --tone: var(--over); } .unknown { --tone: var(--unknown); }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 16px 18px; min-width: 0; }
.chart { margin: 0; }
.wide { grid-column: 1 / -1; }
.plot { width: 100%; }
figcaption { color: var(--muted); font-size: 0.82rem; }
figcaption:empty { display: none; }
.plot .main-svg text { fill: var(--muted) !important; }
.plot .gridlayer path { stroke: var(--grid) !important; }
.plot .hoverlayer .bg { fill: var(--card) !important; stroke: var(--line) !important; }
.plot .hoverlayer .hovertext path { fill: var(--card) !important; stroke: var(--line) !important; }
.plot .main-svg .hoverlayer text { fill: var(--ink) !important; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(170px, 1fr)); gap: 12px 24px; margin: 0; }
.pairs small { display: block; color: var(--muted); }
.card + .charts { margin-top: 16px; }
.pairs dt { color: var(--muted); font-size: 0.82rem; }
.pairs dd { margin: 0; overflow-wrap: anywhere; }
ol { list-style: none; margin: 0; padding: 0; }
.rows > li { display: grid; grid-template-columns: 130px minmax(0, 1fr); gap: 4px 18px; padding: 12px 0; }
.rows > li + li { border-top: 1px solid var(--line); }
.rows .when { color: var(--muted); font-size: 0.88rem; font-variant-numeric: tabular-nums; }
.rows .what { overflow-wrap: anywhere; }
.rows .what span { color: var(--muted); }
.events > li { padding: 5px 0; }
.events > li + li { border: 0; }
.sentences > li {
  grid-template-columns: minmax(0, 1fr); border-left: 3px solid var(--line); padding: 4px 0 4px 14px;
}
.sentences > li + li { border-top: 0; margin-top: 10px; }
.warnings > li { border-left-color: var(--under); }
.text, pre {
  font: 0.86rem/1.6 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: 0;
}
mark { background: var(--mark); color: inherit; border-radius: 3px; padding: 1px 2px; }
pre b { color: var(--key); font-weight: 500; } pre i { color: var(--muted); font-style: normal; }
.moments, .clip { margin: 0; }
.moments svg { display: block; width: 100%; max-height: 560px; }
.moments input { width: 100%; margin: 12px 0 6px; accent-color: var(--key); }
.moments .scale { font-size: 11px; fill: var(--muted); }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 16px; }
.clip img { display: block; width: 100%; max-height: 320px; object-fit: contain; image-rendering: auto; }
.clip figcaption { margin-top: 8px; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 16px; }
.charts + .pictures, .charts + .card, .pictures + .card { margin-top: 16px; }
.pixels { display: block; width: 100%; max-height: 420px; object-fit: contain; image-rendering: pixelated; }
.surface { display: block; width: 100%; height: 300px; border-radius: 4px; }
.plot .menulayer rect, .plot .slider-rail-rect { cursor: pointer; }
details summary { cursor: pointer; color: var(--muted); padding: 6px 0; }
footer { color: var(--muted); font-size: 0.82rem; margin-top: 48px; }
:focus-visible { outline: 2px solid var(--key); outline-offset: 2px; }
@media (max-width: 720px) {
  main { padding: 24px 16px 48px; }
  h1 { font-size: 1.6rem; }
  .charts { grid-template-columns: minmax(0, 1fr); }
  .card { padding: 14px 12px; }
  .facts { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px; }
  .facts dd { font-size: 1.2rem; }
  .rows > li { grid-template-columns: minmax(0, 1fr); }
}
@media print { .card { break-inside: avoid; } }
"""

SCRIPT = """
for (const plot of document.querySelectorAll(".plot")) {
  const figure = JSON.parse(document.getElementById(plot.id + "-figure").textContent);
  Plotly.newPlot(plot, {...figure, config: {displayModeBar: false, responsive: true}});
}
for (const drawing of document.querySelectorAll(".moments")) {
  const slider = drawing.querySelector("input"), moments = drawing.querySelectorAll(".moment");
  if (!slider) continue;
  slider.hidden = false;
  slider.addEventListener("input", () => moments.forEach((moment, at) => { moment.hidden = at != slider.value; }));
}
"""

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
<header>
<h1>$title</h1>
<p class="status">$status</p>
</header>
$body
<footer>$footer</footer>
</main>
$scripts
</body>
</html>
""")

SECTION = Template("""<section aria-label="$heading">
<h2>$heading</h2>
$content
</section>""")

CHART = Template("""<figure class="card chart$shape">
<h3>$title</h3>
<div class="plot" id="$name" role="img" aria-label="$title" style="height: ${height}px"></div>
<script type="application/json" id="$name-figure">$figure</script>
<figcaption>$caption</figcaption>
</figure>""")

FIT = Template("""<section class="fit $tone" aria-label="Fit">
<strong>$verdict</strong>
<p>$sentence</p>
</section>""")

ROW = Template("""<li><span class="when">$when</span><span class="what">$what</span></li>""")

SAMPLE = Template("""<li><span class="when">$when</span><div class="text"><mark>$prompt</mark>$text</div></li>""")

NO_SCRIPT = "<noscript><p>The charts are drawn by JavaScript, which is off in this browser.</p></noscript>"
