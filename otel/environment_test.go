package otel

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"maps"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/stats"

	"github.com/prov4ml/agent/otel/otlptest"
)

// certificate writes a self-signed certificate for loopback and its key.
func certificate(t *testing.T, dir, name string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &private.PublicKey, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	for path, block := range map[string]*pem.Block{
		cert: {Type: "CERTIFICATE", Bytes: der},
		key:  {Type: "EC PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func TestReadEnvironment(t *testing.T) {
	dir := t.TempDir()
	cert, key := certificate(t, dir, "client")
	empty := filepath.Join(dir, "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT=http://localhost:4317"
	for _, test := range []struct {
		name            string
		variables       []string
		traces, metrics bool
		target          string // of the traces
		err             string
		note            string
	}{
		{name: "nothing"},
		{name: "one for both", variables: []string{endpoint}, traces: true, metrics: true},
		{name: "traces alone", variables: []string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=https://t:4317"}, traces: true},
		{name: "metrics alone", variables: []string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=https://m:4317"}, metrics: true},
		{name: "metrics turned off", variables: []string{endpoint, "OTEL_METRICS_EXPORTER=none"}, traces: true},
		{name: "another exporter beside it", variables: []string{endpoint, "OTEL_TRACES_EXPORTER=console, otlp"}, traces: true, metrics: true},
		{name: "all turned off", variables: []string{endpoint, "OTEL_SDK_DISABLED=true"}},
		{name: "an address without scheme", variables: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=127.0.0.1:4317"}, traces: true, metrics: true, target: "127.0.0.1:4317"},
		{name: "a socket", variables: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=unix:/run/c.sock"}, traces: true, metrics: true, target: "unix:/run/c.sock"},
		{name: "no host", variables: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://"}, err: "OTEL_EXPORTER_OTLP_ENDPOINT=http:// names no host"},
		{name: "no address", variables: []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://a b:x"}, err: "OTEL_EXPORTER_OTLP_ENDPOINT"},
		{name: "another protocol", variables: []string{endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"}, traces: true, metrics: true, err: "OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf: this agent speaks grpc alone"},
		{name: "the general protocol overridden", variables: []string{endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL=http/json", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc", "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL=grpc"}, traces: true, metrics: true},
		{name: "compression", variables: []string{endpoint, "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION=zstd"}, traces: true, metrics: true, err: "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION=zstd must be gzip or none"},
		{name: "timeout", variables: []string{endpoint, "OTEL_EXPORTER_OTLP_TIMEOUT=10s"}, traces: true, metrics: true, err: "OTEL_EXPORTER_OTLP_TIMEOUT=10s must be a number of milliseconds"},
		{name: "headers", variables: []string{endpoint, "OTEL_EXPORTER_OTLP_HEADERS=secret"}, traces: true, metrics: true, err: "OTEL_EXPORTER_OTLP_HEADERS must be name=value"},
		{name: "no authority file", variables: []string{endpoint, "OTEL_EXPORTER_OTLP_CERTIFICATE=/no/such"}, traces: true, metrics: true, err: "OTEL_EXPORTER_OTLP_CERTIFICATE: open /no/such"},
		{name: "an authority file of one signal", variables: []string{endpoint, "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE=" + empty}, traces: true, metrics: true, err: "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE: " + empty + " holds no certificate"},
		{name: "a file that nobody reads", variables: []string{endpoint, "OTEL_METRICS_EXPORTER=none", "OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE=/no/such"}, traces: true},
		{name: "client certificate", variables: []string{endpoint, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=" + cert, "OTEL_EXPORTER_OTLP_CLIENT_KEY=" + key}, traces: true, metrics: true},
		{name: "client certificate without key", variables: []string{endpoint, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=" + cert}, traces: true, metrics: true, err: "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE is set, but OTEL_EXPORTER_OTLP_CLIENT_KEY is not"},
		{name: "client key without certificate", variables: []string{endpoint, "OTEL_EXPORTER_OTLP_CLIENT_KEY=" + key}, traces: true, metrics: true, err: "OTEL_EXPORTER_OTLP_CLIENT_KEY is set, but OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE is not"},
		{name: "client key that is none", variables: []string{endpoint, "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=" + cert, "OTEL_EXPORTER_OTLP_CLIENT_KEY=" + empty}, traces: true, metrics: true, err: "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and OTEL_EXPORTER_OTLP_CLIENT_KEY:"},
		{name: "temporality", variables: []string{endpoint, "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=delta"}, traces: true, metrics: true, note: "sums are cumulative"},
	} {
		t.Run(test.name, func(t *testing.T) {
			variables := map[string]string{}
			for _, v := range test.variables {
				k, v, _ := strings.Cut(v, "=")
				variables[k] = v
			}
			env, err := ReadEnvironment(func(k string) string { return variables[k] })
			if test.err == "" && err != nil || test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)) {
				t.Errorf("error is %v, want %q", err, test.err)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Error("the error shows a header")
			}
			if err != nil && strings.Count(err.Error(), "\n") > 0 {
				t.Errorf("one cause gives several errors: %v", err)
			}
			if err == nil && (env.Traces.Enabled() != test.traces || env.Metrics.Enabled() != test.metrics) {
				t.Errorf("traces %v, metrics %v; want %v, %v", env.Traces.Enabled(), env.Metrics.Enabled(), test.traces, test.metrics)
			}
			if err == nil && env.Traces.target != test.target {
				t.Errorf("target is %q, want %q", env.Traces.target, test.target)
			}
			if notes := strings.Join(env.Notes, "\n"); !strings.Contains(notes, test.note) || test.note == "" && notes != "" {
				t.Errorf("notes are %q, want %q", notes, test.note)
			}
		})
	}
}

func TestMutualTLSWithCompression(t *testing.T) {
	dir := t.TempDir()
	serverCert, serverKey := certificate(t, dir, "server")
	clientCert, clientKey := certificate(t, dir, "client")
	pair, err := tls.LoadX509KeyPair(serverCert, serverKey)
	if err != nil {
		t.Fatal(err)
	}
	clients := x509.NewCertPool()
	pemBytes, err := os.ReadFile(clientCert)
	if err != nil {
		t.Fatal(err)
	}
	clients.AppendCertsFromPEM(pemBytes)
	r := &otlptest.Receiver{}
	sizes := &compression{}
	if err := r.Start("", grpc.StatsHandler(sizes), grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert,
	}))); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Stop)
	env := environment(t, map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT":           "https://" + r.Address(),
		"OTEL_EXPORTER_OTLP_CERTIFICATE":        serverCert,
		"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": clientCert,
		"OTEL_EXPORTER_OTLP_CLIENT_KEY":         clientKey,
		"OTEL_EXPORTER_OTLP_COMPRESSION":        "gzip",
	})
	s := openStore(t, dir)
	p := start(t, Config{Store: s, OTLP: env})
	add(t, s, calls(1, 0, 3)...)
	flushed(t, p)
	checkCalls(t, r, 1, 3)
	if sizes.requests.Load() == 0 || sizes.plain.Load() > 0 {
		t.Errorf("%d of %d requests came without compression", sizes.plain.Load(), sizes.requests.Load())
	}
}

// compression counts the requests that a server gets, and those that are not compressed.
type compression struct{ requests, plain atomic.Int64 }

func (c *compression) HandleRPC(_ context.Context, s stats.RPCStats) {
	if in, ok := s.(*stats.InHeader); ok {
		c.requests.Add(1)
		if in.Compression != "gzip" {
			c.plain.Add(1)
		}
	}
}

func (*compression) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }

func (*compression) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (*compression) HandleConn(context.Context, stats.ConnStats)                       {}

func TestResourceFromEnvironment(t *testing.T) {
	for name, row := range map[string]struct {
		service, attributes string
		wantName            string
		want                map[string]string
	}{
		"nothing":            {want: map[string]string{}},
		"its own variable":   {service: "a", attributes: "service.name=b,team=x", wantName: "a", want: map[string]string{"team": "x"}},
		"among the others":   {attributes: "service.name=b,team=x%20y", wantName: "b", want: map[string]string{"team": "x y"}},
		"no name":            {attributes: "team=x", want: map[string]string{"team": "x"}},
		"only the own name":  {service: "a", wantName: "a", want: map[string]string{}},
		"an empty attribute": {attributes: "team=", want: map[string]string{"team": ""}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("OTEL_SERVICE_NAME", row.service)
			t.Setenv("OTEL_RESOURCE_ATTRIBUTES", row.attributes)
			got, attributes, err := ResourceFromEnvironment()
			if err != nil || got != row.wantName || !maps.Equal(attributes, row.want) {
				t.Errorf("%q, %v, %v; want %q, %v", got, attributes, err, row.wantName, row.want)
			}
		})
	}
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "no pair")
	if _, _, err := ResourceFromEnvironment(); err == nil || !strings.Contains(err.Error(), "OTEL_RESOURCE_ATTRIBUTES") {
		t.Errorf("%v", err)
	}
}
