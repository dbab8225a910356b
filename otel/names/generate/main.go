// Command generate writes docs/metrics.md from the table of names.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"

	"github.com/prov4ml/agent/otel/names"
)

func main() {
	out := flag.String("out", "docs/metrics.md", "file to write")
	flag.Parse()
	if err := write(*out); err != nil {
		fmt.Fprintln(os.Stderr, "write the table of names:", err)
		os.Exit(1)
	}
}

func write(path string) error {
	var b bytes.Buffer
	if err := names.Markdown(&b); err != nil {
		return err
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}
