// Package record holds the record of one log call: what is stored, and later exported as a span and metric points.
// It says nothing about how either is done. The messages are in record.proto.
package record
