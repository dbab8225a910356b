package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"strconv"
	"testing"
)

// span is a span of traces.jsonl with its attributes by name.
type span struct {
	TraceID, SpanID, Parent string
	Name                    string
	Start, End              int64
	Attributes              map[string]any
	Resource                map[string]any
	Events                  []event
}

// event is an event of a span.
type event struct {
	Name       string
	Attributes map[string]any
}

// point is a number data point of metrics.jsonl.
type point struct {
	Metric      string
	Value       float64
	Start, Time int64
	Attributes  map[string]any
	Resource    map[string]any
	Monotonic   bool
}

type keyValue struct {
	Key   string `json:"key"`
	Value struct {
		String *string      `json:"stringValue"`
		Int    *json.Number `json:"intValue"`
		Double *float64     `json:"doubleValue"`
		Bool   *bool        `json:"boolValue"`
		Array  *struct {
			Values []struct {
				String string `json:"stringValue"`
			} `json:"values"`
		} `json:"arrayValue"`
	} `json:"value"`
}

func attributes(t *testing.T, list []keyValue) map[string]any {
	t.Helper()
	all := map[string]any{}
	for _, kv := range list {
		if _, twice := all[kv.Key]; twice {
			t.Errorf("attribute %s is there twice", kv.Key)
		}
		switch v := kv.Value; {
		case v.String != nil:
			all[kv.Key] = *v.String
		case v.Int != nil:
			n, err := strconv.ParseInt(v.Int.String(), 10, 64)
			if err != nil {
				t.Errorf("attribute %s: %v", kv.Key, err)
			}
			all[kv.Key] = n
		case v.Double != nil:
			all[kv.Key] = *v.Double
		case v.Bool != nil:
			all[kv.Key] = *v.Bool
		case v.Array != nil:
			texts := []string{}
			for _, s := range v.Array.Values {
				texts = append(texts, s.String)
			}
			all[kv.Key] = texts
		}
	}
	return all
}

// eachLine decodes every line of OTLP JSON lines; a torn line fails the test.
func eachLine[T any](t *testing.T, path string, text []byte, use func(T)) {
	t.Helper()
	for text := range bytes.Lines(text) {
		var line T
		if err := json.Unmarshal(text, &line); err != nil || !bytes.HasSuffix(text, []byte("\n")) {
			t.Fatalf("%s: torn line: %v: %.200s", path, err, text)
		}
		use(line)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func nanos(t *testing.T, text string) int64 {
	t.Helper()
	if text == "" {
		return 0
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

type resourceJSON struct {
	Attributes []keyValue `json:"attributes"`
}

func readSpans(t *testing.T, path string) []span {
	t.Helper()
	return spansOf(t, path, readFile(t, path))
}

// readSpansSoFar reads a file that may not be there yet and that the agent may be writing to: a line without its end is left out.
func readSpansSoFar(t *testing.T, path string) []span {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	return spansOf(t, path, text[:bytes.LastIndexByte(text, '\n')+1])
}

func spansOf(t *testing.T, path string, text []byte) []span {
	t.Helper()
	type request struct {
		ResourceSpans []struct {
			Resource   resourceJSON `json:"resource"`
			ScopeSpans []struct {
				Spans []struct {
					TraceID    string     `json:"traceId"`
					SpanID     string     `json:"spanId"`
					Parent     string     `json:"parentSpanId"`
					Name       string     `json:"name"`
					Start      string     `json:"startTimeUnixNano"`
					End        string     `json:"endTimeUnixNano"`
					Attributes []keyValue `json:"attributes"`
					Events     []struct {
						Name       string     `json:"name"`
						Attributes []keyValue `json:"attributes"`
					} `json:"events"`
				} `json:"spans"`
			} `json:"scopeSpans"`
		} `json:"resourceSpans"`
	}
	var spans []span
	eachLine(t, path, text, func(r request) {
		for _, rs := range r.ResourceSpans {
			resource := attributes(t, rs.Resource.Attributes)
			for _, ss := range rs.ScopeSpans {
				for _, s := range ss.Spans {
					var events []event
					for _, e := range s.Events {
						events = append(events, event{e.Name, attributes(t, e.Attributes)})
					}
					spans = append(spans, span{
						TraceID: s.TraceID, SpanID: s.SpanID, Parent: s.Parent, Name: s.Name,
						Start: nanos(t, s.Start), End: nanos(t, s.End),
						Attributes: attributes(t, s.Attributes), Resource: resource, Events: events,
					})
				}
			}
		}
	})
	return spans
}

func readPoints(t *testing.T, path string) []point {
	t.Helper()
	type data struct {
		DataPoints []struct {
			Int        *json.Number `json:"asInt"`
			Double     *float64     `json:"asDouble"`
			Start      string       `json:"startTimeUnixNano"`
			Time       string       `json:"timeUnixNano"`
			Attributes []keyValue   `json:"attributes"`
		} `json:"dataPoints"`
		Monotonic bool `json:"isMonotonic"`
	}
	type request struct {
		ResourceMetrics []struct {
			Resource     resourceJSON `json:"resource"`
			ScopeMetrics []struct {
				Metrics []struct {
					Name  string `json:"name"`
					Sum   *data  `json:"sum"`
					Gauge *data  `json:"gauge"`
				} `json:"metrics"`
			} `json:"scopeMetrics"`
		} `json:"resourceMetrics"`
	}
	var points []point
	eachLine(t, path, readFile(t, path), func(r request) {
		for _, rm := range r.ResourceMetrics {
			resource := attributes(t, rm.Resource.Attributes)
			for _, sm := range rm.ScopeMetrics {
				for _, m := range sm.Metrics {
					for _, d := range []*data{m.Sum, m.Gauge} {
						if d == nil {
							continue
						}
						for _, p := range d.DataPoints {
							value := 0.0
							if p.Double != nil {
								value = *p.Double
							} else if p.Int != nil {
								value, _ = p.Int.Float64()
							}
							points = append(points, point{
								Metric: m.Name, Value: value, Start: nanos(t, p.Start), Time: nanos(t, p.Time),
								Attributes: attributes(t, p.Attributes), Resource: resource, Monotonic: d.Monotonic,
							})
						}
					}
				}
			}
		}
	})
	return points
}

// named returns the spans of one name.
func named(spans []span, name string) []span {
	var some []span
	for _, s := range spans {
		if s.Name == name {
			some = append(some, s)
		}
	}
	return some
}

// integer returns an integer attribute; an absent one fails the test.
func (s span) integer(t *testing.T, name string) int64 {
	t.Helper()
	n, ok := s.Attributes["prov4ml."+name].(int64)
	if !ok {
		t.Fatalf("span %s step %v has no integer prov4ml.%s, but %v (unavailable: %v)", s.Name,
			s.Attributes["prov4ml.step"], name, s.Attributes["prov4ml."+name], s.Attributes["prov4ml.unavailable"])
	}
	return n
}
