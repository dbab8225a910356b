package server

import (
	"github.com/prov4ml/agent/flops"
	"github.com/prov4ml/agent/record"
)

const (
	// maxTopGroups is how many operators and how many modules a record names: those with most FLOPs.
	maxTopGroups = 10
	// maxUnknownEvents is how many operators without a cost a record explains.
	maxUnknownEvents = 10
)

// rootModule names the module that the model itself is.
const rootModule = "(root)"

// flopsEvents says what a number is made of: coverage, then operators, modules and data types with most FLOPs, then what could
// not be counted. Their times are not set.
func flopsEvents(t *flops.Totals) []*record.Event {
	events := []*record.Event{{Name: record.EventFlopsCoverage, Attributes: []*record.Reading{
		countReading(record.EventOpsExact, t.Coverage.Exact),
		countReading(record.EventOpsDeclared, t.Coverage.Declared),
		countReading(record.EventOpsEstimated, t.Coverage.Estimated),
		countReading(record.EventOpsZero, t.Coverage.Zero),
		countReading(record.EventOpsUnknown, unknownExecutions(t)),
	}}}
	total := t.FLOPs().Float64()
	for _, list := range []struct {
		event, attribute string
		groups           []flops.Group
	}{
		{record.EventFlopsOperator, record.EventOperator, t.Operators},
		{record.EventFlopsModule, record.EventModule, t.Modules},
		{record.EventFlopsDType, record.EventDType, t.DTypes},
	} {
		for i := range list.groups[:min(len(list.groups), maxTopGroups)] {
			g := &list.groups[i]
			if g.FLOPs().IsZero() {
				break // they are in the order of their FLOPs
			}
			name := g.Name
			switch {
			case name != "":
			case list.attribute == record.EventModule:
				name = rootModule
			default:
				name = "unknown"
			}
			events = append(events, &record.Event{Name: list.event, Attributes: []*record.Reading{
				textReading(list.attribute, name),
				countReading(record.EventCount, g.Executions),
				realReading(record.FlopsForward, g.Forward.FLOPs.Float64()),
				realReading(record.FlopsBackward, g.Backward.FLOPs.Float64()),
				realReading(record.EventShare, g.FLOPs().Float64()/total),
			}})
		}
	}
	for _, u := range t.Coverage.Unknown[:min(len(t.Coverage.Unknown), maxUnknownEvents)] {
		events = append(events, &record.Event{Name: record.EventFlopsUnknown, Attributes: []*record.Reading{
			textReading(record.EventOperator, u.Name), textReading(record.EventReason, u.Reason), countReading(record.EventCount, u.Executions),
		}})
	}
	return events
}

func unknownExecutions(t *flops.Totals) (n flops.Number) {
	for _, u := range t.Coverage.Unknown {
		n = n.Add(u.Executions)
	}
	return n
}

func textReading(name, value string) *record.Reading {
	return &record.Reading{Name: name, Value: &record.Reading_Text{Text: value}, State: record.State_OK}
}

func realReading(name string, value float64) *record.Reading {
	return &record.Reading{Name: name, Value: &record.Reading_Real{Real: value}, State: record.State_OK}
}

func countReading(name string, n flops.Number) *record.Reading {
	return &record.Reading{Name: name, Value: &record.Reading_Integer{Integer: int64(saturated(n))}, State: record.State_OK}
}
