// Package names holds the one table of every attribute, metric, span, event and resource name that the agent emits, with
// type, unit, kind, scope and meaning. docs/metrics.md is generated from it.
//
// A name that stands here is a promise to scripts and dashboards; a test proves that the readings of a record and the rows
// of the table are the same set.
package names

//go:generate go run ./generate -out ../../docs/metrics.md
