// Package otel turns records into OpenTelemetry spans and metrics and delivers them.
//
// What a record becomes depends on the record alone: ids, times, attributes and their order are derived from it, so a
// retry sends the same bytes and a receiver that sees a span twice sees one span. Spans and metrics are handed to the
// exporters as finished snapshots: the SDK's batch processor drops when its queue is full, and its metric reader stamps
// points with the time of collection.
//
// A Pipeline has one goroutine for each destination and signal. Each reads the store at its own cursor, which moves only
// when the destination has taken the records, so a destination that is down costs nothing but room in the store.
//
// This package alone imports the SDK and the exporters.
package otel
