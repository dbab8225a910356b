package server

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
)

const benchBody = `{"context":"training","step":"12345","seq":"678","monotonicNanos":"1234567890123"}`

// BenchmarkUnary is a synchronous call and its answer over the socket, nothing measured: by the short way, and by connect.
func BenchmarkUnary(b *testing.B) {
	for _, way := range []struct{ name, header string }{
		{"short", ""},
		// The header asks for the Connect protocol proper.
		{"connect", "Connect-Protocol-Version: 1\r\n"},
	} {
		b.Run(way.name, func(b *testing.B) {
			r := start(b, &fakeTracker{forget: true}, func(c *Config) { c.CallsPerSecond = 1 << 30 })
			c, err := net.Dial("unix", r.path)
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			request := fmt.Appendf(nil, "POST /prov4ml.v1.AgentService/LogSystemMetrics HTTP/1.1\r\nHost: agent\r\n"+
				"Content-Type: application/json\r\n%sContent-Length: %d\r\n\r\n%s", way.header, len(benchBody), benchBody)
			in := bufio.NewReader(c)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.Write(request); err != nil {
					b.Fatal(err)
				}
				res, err := http.ReadResponse(in, nil)
				if err != nil {
					b.Fatal(err)
				}
				if res.StatusCode != http.StatusOK {
					b.Fatal(res.Status)
				}
				if _, err := in.Discard(int(res.ContentLength)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkDecode is the share of a call that protobuf's JSON decoder takes.
func BenchmarkDecode(b *testing.B) {
	body := []byte(benchBody)
	b.ReportAllocs()
	for b.Loop() {
		if err := protojson.Unmarshal(body, new(prov4mlv1.LogSystemMetricsRequest)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStream is an asynchronous call, from the client's write to the tracker, with the client at work as well.
func BenchmarkStream(b *testing.B) {
	r := start(b, &fakeTracker{forget: true}, func(c *Config) { c.CallsPerSecond = 1 << 30 })
	c, err := net.Dial("unix", r.path)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "POST /prov4ml.v1.AgentService/LogStream HTTP/1.1\r\nHost: agent\r\n"+
		"Content-Type: application/connect+json\r\nTransfer-Encoding: chunked\r\n\r\n"); err != nil {
		b.Fatal(err)
	}
	message := envelope(0, []byte(`{"logSystemMetrics":`+benchBody+`}`))
	chunk := fmt.Appendf(nil, "%x\r\n%s\r\n", len(message), message)
	b.ReportAllocs()
	n := int64(0)
	for b.Loop() {
		if _, err := c.Write(chunk); err != nil {
			b.Fatal(err)
		}
		n++
	}
	for r.tracker.number.Load() < n {
		time.Sleep(time.Millisecond)
	}
}

// BenchmarkFlopsRecorded is an asynchronous FLOPs call of a known signature, from the client's write to its commit in the store.
func BenchmarkFlopsRecorded(b *testing.B) {
	r, st := startReal(b, func(c *Config) { c.CallsPerSecond = 1 << 30 })
	operators, err := protojson.Marshal(linearList("s", 32))
	if err != nil {
		b.Fatal(err)
	}
	c, err := net.Dial("unix", r.path)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "POST /prov4ml.v1.AgentService/LogStream HTTP/1.1\r\nHost: agent\r\n"+
		"Content-Type: application/connect+json\r\nTransfer-Encoding: chunked\r\n\r\n"); err != nil {
		b.Fatal(err)
	}
	send := func(cost string) {
		message := envelope(0, fmt.Appendf(nil, `{"logFlopsPerBatch":{"context":"training","step":"12345","label":"train_flops",%s}}`, cost))
		if _, err := fmt.Fprintf(c, "%x\r\n%s\r\n", len(message), message); err != nil {
			b.Fatal(err)
		}
	}
	send(`"operators":` + string(operators))
	n := int64(1)
	b.ReportAllocs()
	for b.Loop() {
		send(`"signature":"s"`)
		n++
	}
	for st.Stats().Records < n {
		time.Sleep(time.Millisecond)
	}
}
