// Count reads a protojson OperatorList on standard input and prints its FLOPs as JSON: what the client's tests compare
// with. Exact values are decimal strings.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"google.golang.org/protobuf/encoding/protojson"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
	"github.com/prov4ml/agent/flops"
	"github.com/prov4ml/agent/server"
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "count:", err)
		os.Exit(1)
	}
}

// unknownOperator is an operator without a cost.
type unknownOperator struct {
	Name       string       `json:"name"`
	Reason     string       `json:"reason"`
	Executions flops.Number `json:"executions"`
}

// group is the share of one operator, module or dtype.
type group struct {
	Forward   flops.Number `json:"forward"`
	Backward  flops.Number `json:"backward"`
	Recompute flops.Number `json:"recompute"`
}

// answer is the program's output.
type answer struct {
	Forward         flops.Number      `json:"forward"`
	Backward        flops.Number      `json:"backward"`
	Recompute       flops.Number      `json:"recompute"`
	KernelRecompute flops.Number      `json:"kernel_recompute"`
	CausalDiscount  flops.Number      `json:"causal_discount"`
	MACs            flops.Number      `json:"macs"`
	Elementwise     flops.Number      `json:"elementwise"`
	Transcendentals flops.Number      `json:"transcendentals"`
	Complete        bool              `json:"complete"`
	Unknown         []string          `json:"unknown"`
	UnknownDetails  []unknownOperator `json:"unknown_details"`
	Operators       map[string]group  `json:"operators"`
	Modules         map[string]group  `json:"modules"`
	DTypes          map[string]group  `json:"dtypes"`
}

func run(r io.Reader, w io.Writer) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("read list: %w", err)
	}
	var message prov4mlv1.OperatorList
	if err := protojson.Unmarshal(data, &message); err != nil {
		return fmt.Errorf("decode list: %w", err)
	}
	list, err := server.OperatorList(&message)
	if err != nil {
		return fmt.Errorf("convert list: %w", err)
	}
	t, err := flops.Count(list)
	if err != nil {
		return fmt.Errorf("count: %w", err)
	}
	a := answer{
		Forward:         t.Forward.FLOPs,
		Backward:        t.Backward.FLOPs,
		Recompute:       t.Recompute.FLOPs,
		KernelRecompute: t.KernelRecompute,
		CausalDiscount:  t.CausalDiscount(),
		MACs:            t.MACs(),
		Elementwise:     t.Forward.Elementwise.Add(t.Backward.Elementwise),
		Transcendentals: t.Forward.Transcendentals.Add(t.Backward.Transcendentals),
		Complete:        t.Complete(),
		Unknown:         append([]string{}, t.UnknownNames()...),
		Operators:       shares(t.Operators),
		Modules:         shares(t.Modules),
		DTypes:          shares(t.DTypes),
	}
	for _, u := range t.Coverage.Unknown {
		a.UnknownDetails = append(a.UnknownDetails, unknownOperator(u))
	}
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", " ")
	return encoder.Encode(a)
}

func shares(groups []flops.Group) map[string]group {
	m := make(map[string]group, len(groups))
	for _, g := range groups {
		if !g.Executed().IsZero() {
			m[g.Name] = group{Forward: g.Forward.FLOPs, Backward: g.Backward.FLOPs, Recompute: g.Recompute.FLOPs}
		}
	}
	return m
}
