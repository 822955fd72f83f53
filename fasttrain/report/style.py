"""How a report looks: on light and dark screens, and on paper."""

STYLE = """
:root {
  color-scheme: light dark;
  --back: #fff; --ink: #1d2126; --soft: #5d6670; --line: #d9dee3; --card: #f6f7f9; --warn: #b3261e;
}
@media (prefers-color-scheme: dark) {
  :root {
    --back: #15181c; --ink: #e4e7ea; --soft: #9aa4ae; --line: #343a41; --card: #1d2126; --warn: #ff8a80;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 75rem; padding: 1.5rem 1rem 3rem;
  background: var(--back); color: var(--ink); overflow-wrap: anywhere;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif;
}
h1 { font-size: 1.6rem; margin: 0 0 .3rem; }
h2 {
  font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line);
}
p { margin: .4rem 0; max-width: 60rem; }
ul { padding-left: 1.2rem; margin: .4rem 0; }
summary { cursor: pointer; color: var(--soft); padding: .3rem 0; }
.soft, figcaption, caption { color: var(--soft); }
.warn { color: var(--warn); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; }
caption { text-align: left; padding-bottom: .25rem; }
th, td {
  padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; overflow-wrap: normal;
  border-bottom: 1px solid var(--line);
}
th { font-weight: 600; }
tbody th { font-weight: 400; color: var(--soft); }
td { min-width: 8rem; max-width: 28rem; overflow-wrap: anywhere; }
td.number, th.number { text-align: right; white-space: nowrap; }
.figures {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1rem;
}
figure { margin: 0; padding: .6rem; background: var(--card); border-radius: .4rem; break-inside: avoid; }
figcaption { font-size: .93em; padding: 0 .3rem; }
figcaption b { color: var(--ink); }
svg { display: block; width: 100%; height: auto; }
.legend { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }
@media print {
  body { max-width: none; padding: 0; font-size: 11px; }
  h2 { break-after: avoid; }
  tr { break-inside: avoid; }
  .wide { overflow: visible; }
  th, td, td.number, th.number {
    min-width: 0; padding-right: .5em; overflow-wrap: anywhere; white-space: normal;
  }
  .figures { grid-template-columns: 1fr 1fr; }
  figure { background: none; border: 1px solid var(--line); }
  .swatch { print-color-adjust: exact; }
}
"""
