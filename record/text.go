package record

import (
	"fmt"
	"unicode/utf8"
)

// CheckText names the first text of a record that is not valid UTF-8. Protobuf allows no other, and a record that holds one
// cannot be read again; MarshalVT, unlike proto.Marshal, does not look.
func CheckText(r *LogCall) error {
	c := textCheck{}
	c.process(r.GetProcess())
	c.text("context", r.GetContext())
	c.text("label", r.GetLabel())
	c.readings("readings", r.GetReadings())
	c.texts("unavailable", r.GetUnavailable())
	for _, e := range r.GetEvents() {
		c.text("event", e.GetName())
		c.readings("event's attributes", e.GetAttributes())
	}
	c.text("traceparent", r.GetTraceparent())
	c.segment(r.GetSegment())
	for _, s := range r.GetClosedSegments() {
		c.segment(s)
	}
	c.totals("step's totals", r.GetStepTotals())
	c.totals("context's totals", r.GetContextTotals())
	c.readings("run's totals", r.GetRunTotals())
	c.pairs("run's attributes", r.GetRunAttributes())
	for _, m := range r.GetLoggedMetrics() {
		c.text("logged metric", m.GetKey())
		c.text("logged metric's context", m.GetContext())
	}
	c.text("error", r.GetError())
	for _, h := range r.GetHistograms() {
		c.text("histogram", h.GetName())
	}
	return c.err
}

// textCheck keeps the first error.
type textCheck struct{ err error }

func (c *textCheck) text(field, value string) {
	if c.err == nil && !utf8.ValidString(value) {
		c.err = fmt.Errorf("%s %q is not valid UTF-8", field, value)
	}
}

func (c *textCheck) texts(field string, values []string) {
	for _, v := range values {
		c.text(field, v)
	}
}

func (c *textCheck) pairs(field string, pairs map[string]string) {
	for k, v := range pairs {
		c.text(field, k)
		c.text(field, v)
	}
}

func (c *textCheck) readings(field string, readings []*Reading) {
	for _, r := range readings {
		c.text(field, r.GetName())
		c.text(field, r.GetText())
		c.text(field, r.GetReason())
	}
}

func (c *textCheck) process(p *Process) {
	c.text("boot id", p.GetBootId())
	c.text("run id", p.GetRunId())
	c.text("service name", p.GetServiceName())
	c.text("host name", p.GetHostName())
	c.text("container id", p.GetContainerId())
	c.text("pod uid", p.GetPodUid())
	c.pairs("resource", p.GetResource())
}

func (c *textCheck) segment(s *Segment) { c.text("segment's context", s.GetContext()) }

func (c *textCheck) totals(field string, set *TotalSet) {
	for _, t := range set.GetTotals() {
		c.text(field, t.GetName())
	}
}
