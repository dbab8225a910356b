package otel

import (
	"math"
	"strings"
	"sync"

	"go.opentelemetry.io/otel/attribute"

	"github.com/prov4ml/agent/otel/names"
	"github.com/prov4ml/agent/record"
)

// entry is a row of the table of names, made ready.
type entry struct {
	names.Row
	key, totalKey attribute.Key
	metrics       []metricEntry
}

// metricEntry is one metric of a row.
type metricEntry struct {
	names.Metric
	description string
	// order is the metric's place among all metrics.
	order int
	// real: the points are doubles.
	real bool
	// fixed is the index of the metric's fixed attributes in table.fixed.
	fixed int
}

// table is the table of names by name of the reading.
type table struct {
	entries map[string]*entry
	// metrics is how many metrics there are.
	metrics int
	// fixed are the distinct lists of fixed attributes; 0 is none.
	fixed [][]attribute.KeyValue
}

// theTable is made once and never changes.
var theTable = sync.OnceValue(newTable)

func newTable() *table {
	t := &table{entries: map[string]*entry{}, fixed: [][]attribute.KeyValue{nil}}
	places := map[string]int{}
	for _, row := range names.Rows() {
		if !row.Reading {
			continue
		}
		e := &entry{Row: row, key: attribute.Key(row.Attribute()), totalKey: attribute.Key(row.Total())}
		for _, m := range row.Metrics {
			var fixed []attribute.KeyValue
			var id strings.Builder
			for _, a := range m.Attributes {
				fixed = append(fixed, attribute.String(a.Key, a.Value))
				id.WriteString(a.Key + "=" + a.Value + ";")
			}
			place := 0
			if fixed != nil {
				var ok bool
				if place, ok = places[id.String()]; !ok {
					place = len(t.fixed)
					places[id.String()] = place
					t.fixed = append(t.fixed, fixed)
				}
			}
			e.metrics = append(e.metrics, metricEntry{
				Metric:      m,
				description: strings.ReplaceAll(row.Text, "`", ""),
				order:       t.metrics,
				real:        row.Type == names.Double,
				fixed:       place,
			})
			t.metrics++
		}
		t.entries[row.Name] = e
	}
	return t
}

// shown says whether a reading's value may be shown: a measured one, or one of which a part is missing, which is a lower
// bound and makes the window incomplete.
func shown(r *record.Reading) bool {
	return r.GetValue() != nil && (r.GetState() == record.State_OK || r.GetState() == record.State_INCOMPLETE)
}

// attributeOf makes a reading an attribute; ok is false when it has no value to show. A reading that the table does not know
// (a newer record's) keeps its own type. A total is shown as well when it is stale: it is what was counted.
func (t *table) attributeOf(r *record.Reading, total bool) (kv attribute.KeyValue, ok bool) {
	if !shown(r) && !(total && r.GetState() == record.State_STALE) {
		return kv, false
	}
	e := t.entries[r.GetName()]
	if e == nil {
		if r.GetName() == "" {
			return kv, false
		}
		prefix := names.Prefix
		if total {
			prefix = names.TotalPrefix
		}
		return untyped(attribute.Key(prefix+r.GetName()), r)
	}
	key := e.key
	if total {
		key = e.totalKey
	}
	switch e.Type {
	case names.Int:
		v, ok := integer(r)
		return key.Int64(v), ok
	case names.Double:
		v, ok := real(r)
		return key.Float64(v), ok
	case names.StringArray:
		text := r.GetText()
		return key.StringSlice(strings.Split(text, "\n")), text != ""
	default:
		return untyped(key, r)
	}
}

// untyped makes a reading an attribute of the type it came in.
func untyped(key attribute.Key, r *record.Reading) (attribute.KeyValue, bool) {
	switch v := r.GetValue().(type) {
	case *record.Reading_Integer:
		return key.Int64(v.Integer), true
	case *record.Reading_Real:
		return key.Float64(v.Real), true
	case *record.Reading_Boolean:
		return key.Bool(v.Boolean), true
	case *record.Reading_Text:
		return key.String(v.Text), true
	default:
		return attribute.KeyValue{}, false
	}
}

// integer is the reading's value as an integer; ok is false when it is no number.
func integer(r *record.Reading) (v int64, ok bool) {
	switch v := r.GetValue().(type) {
	case *record.Reading_Integer:
		return v.Integer, true
	case *record.Reading_Real:
		// Beyond these a conversion has no defined result.
		if v.Real >= -(1<<63) && v.Real < 1<<63 {
			return int64(math.Round(v.Real)), true
		}
	}
	return 0, false
}

// watched splits the name of a watched directory's fullness: disk_usage./data.
func watched(name string) (directory string, ok bool) {
	return strings.CutPrefix(name, record.DiskUsage+".")
}

// real is the reading's value as a double; ok is false when it is no finite number.
func real(r *record.Reading) (v float64, ok bool) {
	switch v := r.GetValue().(type) {
	case *record.Reading_Integer:
		return float64(v.Integer), true
	case *record.Reading_Real:
		return v.Real, !math.IsNaN(v.Real) && !math.IsInf(v.Real, 0)
	}
	return 0, false
}
