package names_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/prov4ml/agent/otel/names"
	"github.com/prov4ml/agent/record"
)

// recordNames reads the constants of record/quantity.go, which Go's reflection cannot list.
func recordNames(t *testing.T) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "../../record/quantity.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, decl := range file.Decls {
		gen, ok := decl.(*ast.GenDecl)
		if !ok || gen.Tok != token.CONST {
			continue
		}
		for _, spec := range gen.Specs {
			for _, value := range spec.(*ast.ValueSpec).Values {
				literal, ok := value.(*ast.BasicLit)
				if !ok || literal.Kind != token.STRING {
					continue
				}
				s, err := strconv.Unquote(literal.Value)
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, s)
			}
		}
	}
	if len(out) < 40 {
		t.Fatalf("only %d names found in record/quantity.go", len(out))
	}
	return out
}

func TestRowsAreTheRecordsReadings(t *testing.T) {
	var rows []string
	for _, r := range names.Rows() {
		if r.Reading {
			rows = append(rows, r.Name)
		}
	}
	want := recordNames(t)
	slices.Sort(rows)
	slices.Sort(want)
	if diff := cmp.Diff(want, rows); diff != "" {
		t.Errorf("record/quantity.go and the table differ (-record +table):\n%s", diff)
	}
}

func TestRowsAreWellFormed(t *testing.T) {
	legal := regexp.MustCompile(`^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$`)
	units := []string{"", "1", "%", "By", "s", "ms", "Hz", "{operation}", "{fault}", "{process}", "{flop}", "{flop}/s", "{mac}", "{sample}", "{batch}"}
	attributes, metrics := map[string]bool{}, map[string]bool{}
	for _, r := range names.Rows() {
		if !legal.MatchString(r.Name) {
			t.Errorf("%q is no legal name", r.Name)
		}
		if attributes[r.Name] {
			t.Errorf("%s stands twice in the table", r.Name)
		}
		attributes[r.Name] = true
		if r.Text == "" || !strings.HasSuffix(r.Text, ".") && !strings.HasSuffix(r.Text, "...") {
			t.Errorf("%s: the text is no sentence: %q", r.Name, r.Text)
		}
		if r.Type == 0 || r.Scope == 0 {
			t.Errorf("%s has no type or no scope", r.Name)
		}
		for _, m := range r.Metrics {
			if metrics[m.Name] {
				t.Errorf("metric %s stands twice in the table", m.Name)
			}
			metrics[m.Name] = true
			if !legal.MatchString(m.Name) {
				t.Errorf("%q is no legal metric name", m.Name)
			}
			if m.Kind == names.NoMetric {
				t.Errorf("metric %s has no kind", m.Name)
			}
			if m.Unit == "%" || m.Unit == "" {
				t.Errorf("metric %s: unit %q; metrics are fractions and have a unit", m.Name, m.Unit)
			}
			if strings.HasPrefix(m.Name, "system.") && r.Scope != names.Host {
				t.Errorf("metric %s claims the host, but its scope is %s", m.Name, r.Scope)
			}
			if r.Scope == names.Node && m.Kind != names.Gauge {
				t.Errorf("metric %s: a node-wide sum would be added up over processes", m.Name)
			}
			if m.Kind != names.Gauge && r.Type != names.Int && r.Type != names.Double {
				t.Errorf("metric %s is made of a %s", m.Name, r.Type)
			}
		}
		if !slices.Contains(units, r.Unit) {
			t.Errorf("%s: unknown unit %q", r.Name, r.Unit)
		}
	}
}

func TestDocumentIsFresh(t *testing.T) {
	got, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	var want bytes.Buffer
	if err := names.Markdown(&want); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.String(), string(got)); diff != "" {
		t.Errorf("docs/metrics.md is stale: run go generate ./otel/names/... (-want +got):\n%s", diff)
	}
}

func TestEventsAreTheRecords(t *testing.T) {
	for _, pair := range [][2]string{
		{record.EventFlopsOperator, names.EventFlopsOperator},
		{record.EventFlopsModule, names.EventFlopsModule},
		{record.EventFlopsDType, names.EventFlopsDType},
		{record.EventFlopsUnknown, names.EventFlopsUnknown},
		{record.EventFlopsCoverage, names.EventFlopsCoverage},
		{record.EventOperator, names.FlopsOperator},
		{record.EventModule, names.FlopsModule},
		{record.EventDType, names.FlopsDType},
		{record.EventReason, names.FlopsReason},
		{record.EventCount, names.FlopsCount},
		{record.EventShare, names.FlopsShare},
		{record.EventOpsExact, names.FlopsOpsExact},
		{record.EventOpsDeclared, names.FlopsOpsDeclared},
		{record.EventOpsEstimated, names.FlopsOpsEstimated},
		{record.EventOpsZero, names.FlopsOpsZero},
		{record.EventOpsUnknown, names.FlopsOpsUnknown},
	} {
		if names.Prefix+pair[0] != pair[1] {
			t.Errorf("record has %q, the table %q", pair[0], pair[1])
		}
	}
}
