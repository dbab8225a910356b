package names

import (
	"fmt"
	"io"
	"strings"
)

const introduction = `# Attributes and metrics

<!-- Generated from otel/names by "go generate ./otel/names/..."; a test fails when it is stale. -->

Every name that the agent emits. Attributes are on the span of the log call and describe its **window**: from the previous
call of that function by that process to this one. A value that could not be measured is **absent**, never 0, and
` + "`prov4ml.unavailable`" + ` says why. A value of which a part is missing (without eBPF, what exited children did) is a lower
bound; then ` + "`prov4ml.window.incomplete`" + ` is true.

- **tree**: the calling process and all its descendants, exited and orphaned ones included; trees inside it included.
- **node**: the whole machine in that window. **host**: the state of the machine, as ` + "`psutil`" + ` shows it.
- **model**: arithmetic that was counted, not measured.
- Units are UCUM: ` + "`By`" + ` bytes, ` + "`s`" + ` seconds, ` + "`1`" + ` a fraction 0 to 1. Percentages are on the span only, under the names of the
  original.

## What a metric point carries

Each log call gives one set of points with the call's own time. Only ` + "`log_system_metrics`" + ` and the end of the run emit tree,
node and host values, so that nothing is summed twice: the FLOPs functions have windows of their own that overlap these.

| | ` + "`--metrics-step=attribute`" + ` (default) | ` + "`--metrics-step=exemplar`" + ` |
|---|---|---|
| point attributes | ` + "`prov4ml.context`, `prov4ml.step`" + ` | ` + "`prov4ml.context`" + ` |
| a sum is | the total of that context and step; its start is that set's first window | the running total of that context; its start survives restarts of the agent |
| step | attribute | exemplar with trace and span id, and the gauge ` + "`prov4ml.step`" + ` |
| series of a run | grow with its steps, up to 10,000; later points have ` + "`prov4ml.step_capped`" + ` instead and share one running total for each context | constant |

Use ` + "`exemplar`" + ` for Prometheus and its kin: there each step would be a series of its own. What is left at the end of a run
since the last ` + "`log_system_metrics`" + ` has points with ` + "`prov4ml.run_end` = true" + `, series of their own. A set that begins anew has
a new start. So in either mode the newest point of each series and start, added up over all, is the run's total.
`

// Markdown writes docs/metrics.md.
func Markdown(w io.Writer) error {
	var b strings.Builder
	b.WriteString(introduction)

	groups := []struct {
		title string
		scope Scope
	}{
		{"The call", Call},
		{"The tree", Tree},
		{"The node in the window", Node},
		{"The host", Host},
		{"The memory cgroup", Cgroup},
		{"GPUs", GPU},
		{"The model", Model},
	}
	for _, g := range groups {
		fmt.Fprintf(&b, "\n## %s\n\n| attribute | type, unit | metric | meaning |\n|---|---|---|---|\n", g.title)
		for _, r := range Rows() {
			if r.Scope != g.scope {
				continue
			}
			text := r.Text
			if r.Bound != "" {
				text += " *" + upperFirst(r.Bound) + ".*"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", r.Attribute(), typeAndUnit(r), metricCell(r), text)
		}
	}

	b.WriteString("\nOn `" + SpanRunEnd + "` the totals of the run are `" + TotalPrefix + "*`: of each tree and node attribute that adds up over windows, and the\nlargest resident memory.\n" +
		"Parameters of the script (`log_param`) are `" + ParameterPrefix + "*` on the run's two markers.\n")

	b.WriteString("\n## Metrics without an attribute of their own\n\n| metric | kind, unit | meaning |\n|---|---|---|\n")
	fmt.Fprintf(&b, "| `%s` | gauge | A metric that the script logged (`log_metric`); its key is `%s`. |\n", MetricLogged, LoggedKey)
	fmt.Fprintf(&b, "| `%s` | histogram, `s` | Time of the tree's requests from issue to completion: the counts of one window between powers of two, by `disk.io.direction`, starting at the window's start; only with `--metrics-step=attribute`. The exemplar is the window's mean and leads to its span. |\n", MetricLatency)
	fmt.Fprintf(&b, "| `%s` | gauge | The newest step of a context; only with `--metrics-step=exemplar`. |\n", MetricStep)

	b.WriteString("\n## Spans\n\nOne **run trace** for each logging process; **segment traces** hold the log calls.\n\n| span | trace | what it is |\n|---|---|---|\n")
	for _, s := range Spans() {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", s.Name, s.Trace, s.Text)
	}

	b.WriteString("\n## Events of spans\n\n| event | what it is |\n|---|---|\n")
	for _, e := range Events() {
		fmt.Fprintf(&b, "| `%s` | %s |\n", e.Name, e.Text)
	}

	b.WriteString("\n## The resource\n\nThe resource is the training process; the agent is the instrumentation scope (`" + ScopeName + "` and its version).\n\n| attribute | type | meaning |\n|---|---|---|\n")
	for _, a := range Resource() {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", a.Name, a.Type, a.Text)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func typeAndUnit(r Row) string {
	if r.Unit == "" {
		return r.Type.String()
	}
	return fmt.Sprintf("%s, `%s`", r.Type, r.Unit)
}

func metricCell(r Row) string {
	cells := make([]string, 0, len(r.Metrics))
	for _, m := range r.Metrics {
		cell := m.Kind.String()
		if m.Name == r.Attribute() {
			cell += ", same name"
		} else {
			cell += fmt.Sprintf(" `%s`", m.Name)
		}
		if m.Unit != r.Unit {
			cell += fmt.Sprintf(", `%s`", m.Unit)
		}
		for _, a := range m.Attributes {
			cell += fmt.Sprintf(", `%s`=%s", a.Key, a.Value)
		}
		cells = append(cells, cell)
	}
	return strings.Join(cells, "; ")
}

func upperFirst(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
