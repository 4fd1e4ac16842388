"""How the report's page looks: colours for light and dark, and its rules.

Elsewhere what stands on it: report_page.py.
"""

LIGHT = (
    "--ink:#1b1b1b;--paper:#fff;--soft:#5a5a5a;--line:#d5d5d5;--faint:#ececec;--lit:#fff3b0;--panel:#f6f6f4;"
    "--s0:#1f5fa8;--s1:#b4480b;--s2:#0a7458;--s3:#8b3f9c;--s4:#7a6200;--s5:#a8284a;--good:#0a6b3d;--bad:#a32020"
)
DARK = (
    "--ink:#e9e9e6;--paper:#151517;--soft:#a9a9a4;--line:#3d3d40;--faint:#2a2a2d;--lit:#4a4210;--panel:#1f1f22;"
    "--s0:#79b4ff;--s1:#ff9e63;--s2:#4fd0a5;--s3:#d69bee;--s4:#e0c24d;--s5:#ff8ba7;--good:#63d397;--bad:#ff8a80"
)
STYLE = (
    f"""
:root{{color-scheme:light dark;{LIGHT}}}
@media screen and (prefers-color-scheme:dark){{:root{{{DARK}}}}}
@media print{{:root{{color-scheme:light;{LIGHT}}}}}
"""
    + """
body{margin:0 auto;max-width:72rem;padding:1.5rem 1.2rem 4rem;font:16px/1.5 system-ui,"Segoe UI",sans-serif}
h1{font-size:1.7rem;line-height:1.2;margin:.5rem 0 .3rem} h2{font-size:1.25rem;margin:2.6rem 0 .5rem}
h3{font-size:1.05rem;margin:1.8rem 0 .4rem} p{margin:.4rem 0 .8rem;max-width:46rem}
.soft{color:var(--soft)} .lead{font-size:1.08rem} .good{color:var(--good)} .bad{color:var(--bad)}
.verdicts{display:flex;flex-wrap:wrap;gap:.8rem;margin:1rem 0;padding:0;list-style:none}
.verdicts li{background:var(--panel);border-radius:.5rem;padding:.7rem 1rem;flex:1 1 15rem}
.verdicts b{display:block;font-size:1.02rem} .verdicts .big{font-size:1.5rem;font-weight:600;line-height:1.3}
.scroll{overflow-x:auto;margin:.6rem 0 1rem} table{border-collapse:collapse;font-size:.9rem;line-height:1.35}
th,td{padding:.35rem .7rem;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{font-weight:600} td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}
td small{color:var(--soft);display:block;font-size:.82rem} code{font-size:.88em;overflow-wrap:anywhere}
td.same{background:var(--panel)} figure.plot{margin:1rem 0;break-inside:avoid}
figure.plot figcaption{color:var(--soft);font-size:.9rem;max-width:46rem;margin-bottom:.5rem}
figure.plot figcaption b{color:var(--ink);display:block;font-size:1rem}
.wide{overflow-x:auto} .wide svg.chart{min-width:34rem} .panels{display:flex;flex-wrap:wrap;gap:1rem 2rem}
.panels svg.chart{flex:0 1 350px;min-width:19rem}
svg.chart{width:100%;height:auto;display:block;font:13px system-ui,"Segoe UI",sans-serif}
svg.chart text{fill:var(--ink)} svg.chart text.soft{fill:var(--soft)} svg.chart text.name{font-weight:600}
svg.chart .axis{stroke:var(--soft)} svg.chart .grid{stroke:var(--faint)} svg.chart .lead{stroke:var(--line)}
svg.chart .gate{stroke:var(--soft);stroke-dasharray:5 4} svg.chart .span{stroke:currentColor;stroke-width:2}
svg.chart .tail{stroke:currentColor;stroke-width:1.5;stroke-dasharray:2 3}
svg.chart .over{stroke:var(--ink);stroke-width:1.5} svg.chart .line{fill:none;stroke:currentColor;
 stroke-width:2}
svg.chart .bar,svg.chart .mark{fill:currentColor} svg.chart .mark{stroke:var(--paper);stroke-width:1}
svg.chart .bar.whole{opacity:.45} svg.chart .bar.count{fill:var(--soft);opacity:.6}
.u0{color:var(--s0)}.u1{color:var(--s1)}.u2{color:var(--s2)}.u3{color:var(--s3)}.u4{color:var(--s4)}
.u5{color:var(--s5)}
.flip{border-top:1px solid var(--line);padding-top:.9rem;margin-top:1.4rem} .flip h3{margin:0}
.flip .sides{display:grid;grid-template-columns:1fr 1fr;gap:1.6rem}
.flip .record{border:0;padding:.4rem 0} .flip .record h2{margin:.3rem 0 .1rem;font-size:1rem}
.flip .record .notes{margin-bottom:.4rem}
.flip .pair{display:block} .flip .picture{max-width:26rem;margin-bottom:.6rem} .flip .trace{font-size:.82rem}
@media (max-width:44rem){.flip .sides{grid-template-columns:1fr} table.long{min-width:52rem}}
dl.words{display:grid;grid-template-columns:minmax(6rem,auto) minmax(0,1fr);gap:.35rem 1.2rem;max-width:52rem;
 font-size:.92rem}
dl.words dt{font-weight:600} dl.words dd{margin:0;overflow-wrap:anywhere}
@media print{body{font-size:10.5pt;padding:0} h1,h2,h3,p.soft,.flip .notes{break-after:avoid}
 .scroll{break-inside:avoid}
 .flip .record,.flip .sides{break-inside:auto} .flip .picture,tr{break-inside:avoid}
 .scroll,.wide{overflow:visible} table{font-size:8.5pt}
 th,td{padding:.25rem .4rem} .wide svg.chart{min-width:0}}
"""
)
