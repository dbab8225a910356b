// Package report tells people what a run did, from its records.
//
// It sees what the store holds and nothing else, so a report can be made again later. A value that was not measured is a
// dash, never 0; a lower bound is marked with ≥.
package report
