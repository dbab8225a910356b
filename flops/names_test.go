package flops

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"
)

// torchOperators reads the operators that torch has, by their name without the mark of an in-place form.
func torchOperators(t *testing.T) map[string]bool {
	t.Helper()
	data, err := os.ReadFile("testdata/torch-operators.txt")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		namespace, base := baseName(line)
		names[namespace+"."+base] = true
	}
	return names
}

// caseLabels returns the case labels of a function's switches.
func caseLabels(t testing.TB, file, function string) []string {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, d := range parsed.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Name.Name != function {
			continue
		}
		ast.Inspect(f, func(n ast.Node) bool {
			clause, ok := n.(*ast.CaseClause)
			if !ok {
				return true
			}
			for _, e := range clause.List {
				if literal, ok := e.(*ast.BasicLit); ok {
					name, err := strconv.Unquote(literal.Value)
					if err != nil {
						t.Fatal(err)
					}
					names = append(names, name)
				}
			}
			return true
		})
	}
	if len(names) == 0 {
		t.Fatalf("no names in %s of %s", function, file)
	}
	return names
}

// A misspelt name in a table would be a formula that is never used.
func TestTablesNameOperatorsThatTorchHas(t *testing.T) {
	torch := torchOperators(t)
	for _, table := range []struct {
		file, function string
		namespaces     []string
	}{
		{"formulas.go", "exactFormula", []string{"aten"}},
		{"estimates.go", "estimatedFormula", []string{"aten", "prims"}},
		{"estimates.go", "isView", []string{"aten"}},
		{"estimates.go", "isMove", []string{"aten"}},
		{"formulas.go", "primitiveFormula", []string{"prims"}},
		{"formulas.go", "visionFormula", []string{"torchvision"}},
	} {
		seen := map[string]bool{}
		for _, name := range caseLabels(t, table.file, table.function) {
			// Only torch builds with MKL have _mkl_linear.
			found := name == "_mkl_linear"
			for _, n := range table.namespaces {
				found = found || torch[n+"."+name]
			}
			if !found {
				t.Errorf("%s: torch has no %s", table.function, name)
			}
			if seen[name] {
				t.Errorf("%s: %s stands twice", table.function, name)
			}
			seen[name] = true
		}
	}
}

// An operator in two tables would have two classes.
func TestTablesAreDisjoint(t *testing.T) {
	seen := map[string]string{}
	for _, table := range [][2]string{
		{"formulas.go", "exactFormula"},
		{"estimates.go", "estimatedFormula"},
		{"estimates.go", "isView"},
		{"estimates.go", "isMove"},
	} {
		for _, name := range caseLabels(t, table[0], table[1]) {
			if other := seen[name]; other != "" {
				t.Errorf("%s stands in %s and %s", name, other, table[1])
			}
			seen[name] = table[1]
		}
	}
}

// Operators that would be wrong as an estimate or as zero stay unknown, so that a list with one of them is not
// complete.
func TestOperatorsThatStayUnknown(t *testing.T) {
	for _, name := range []string{
		"aten.matrix_exp", "aten._sparse_mm", "aten.sparse_sampled_addmm", "aten.quantized_lstm", "aten._triton_multi_head_attention",
		"aten.linear_backward", "aten.matmul_backward", "aten._foreach_mm", "aten.linalg_multi_dot", "torchvision._deform_conv2d_backward",
		"quantized.linear", "mylib.fused_attention", "aten.no_such_operator", "addmm", "", ".", "aten.", "aten._", "aten.__",
	} {
		if formulaFor(name) != nil {
			t.Errorf("%q has a formula", name)
		}
	}
}

func TestNamesOfOneOperator(t *testing.T) {
	for name, want := range map[string]string{
		"aten.add": "add", "aten.add_": "add", "aten.add.Tensor": "add", "aten.__iand__": "__iand__", "aten._foreach_mul_": "_foreach_mul",
	} {
		if _, base := baseName(name); base != want {
			t.Errorf("%s is %s, want %s", name, base, want)
		}
		if formulaFor(name) == nil {
			t.Errorf("%s is unknown", name)
		}
	}
}
