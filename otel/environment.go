package otel

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
)

// Environment is what the OTEL_* variables say about the receiver. The exporters read the variables themselves; this says
// whether there is a receiver, and finds at start what they would only log and go on with: a certificate file that cannot
// be read would make them trust the system's authorities, and look like an outage.
type Environment struct {
	Traces, Metrics Endpoint
	// Notes are settings that have no effect here, a sentence each.
	Notes []string
}

// Endpoint is the receiver of one signal.
type Endpoint struct {
	enabled bool
	// target is the endpoint where the exporter would not understand the variable's value: an address without scheme.
	target string
	// value is what the variable says.
	value string
}

// Enabled says whether the signal has a receiver.
func (e Endpoint) Enabled() bool { return e.enabled }

// String is the endpoint as the variable names it; empty when there is none.
func (e Endpoint) String() string { return e.value }

const otlpPrefix = "OTEL_EXPORTER_OTLP_"

// ReadEnvironment checks the variables; get is os.Getenv. Its errors name the variable. A signal has a receiver when
// OTEL_EXPORTER_OTLP_ENDPOINT or its own variable is set and OTEL_TRACES_EXPORTER or OTEL_METRICS_EXPORTER does not say
// otherwise.
func ReadEnvironment(get func(string) string) (Environment, error) {
	var env Environment
	if strings.EqualFold(strings.TrimSpace(get("OTEL_SDK_DISABLED")), "true") {
		return env, nil
	}
	var errs []error
	read := func(signal string) Endpoint {
		r := signalVariables{get: get, signal: signal}
		e, err := r.endpoint()
		errs = append(errs, err)
		if e.enabled {
			errs = append(errs, r.check())
		}
		return e
	}
	env.Traces = read(upper(signalTraces))
	env.Metrics = read(upper(signalMetrics))
	if env.Metrics.enabled {
		if v := strings.TrimSpace(get(otlpPrefix + "METRICS_TEMPORALITY_PREFERENCE")); v != "" && !strings.EqualFold(v, "cumulative") {
			env.Notes = append(env.Notes, fmt.Sprintf("%sMETRICS_TEMPORALITY_PREFERENCE=%s has no effect: sums are cumulative", otlpPrefix, v))
		}
	}
	return env, errors.Join(dedup(errs)...)
}

// dedup drops an error that both signals have: they share a variable.
func dedup(errs []error) []error {
	seen := map[string]bool{}
	var out []error
	for _, err := range errs {
		if err != nil && !seen[err.Error()] {
			seen[err.Error()] = true
			out = append(out, err)
		}
	}
	return out
}

func upper(signal string) string { return strings.ToUpper(signal) }

// signalVariables reads the variables of one signal.
type signalVariables struct {
	get    func(string) string
	signal string
}

// value returns the signal's own variable, else the general one, and which it is.
func (r signalVariables) value(key string) (value, variable string) {
	for _, variable := range []string{otlpPrefix + r.signal + "_" + key, otlpPrefix + key} {
		if v := strings.TrimSpace(r.get(variable)); v != "" {
			return v, variable
		}
	}
	return "", ""
}

// endpoint says where the signal goes.
func (r signalVariables) endpoint() (Endpoint, error) {
	exporters := strings.TrimSpace(r.get("OTEL_" + r.signal + "_EXPORTER"))
	value, variable := r.value("ENDPOINT")
	if value == "" || exporters != "" && !contains(exporters, "otlp") {
		return Endpoint{}, nil
	}
	e := Endpoint{enabled: true, value: value}
	if !strings.Contains(value, "://") {
		// host:port, or unix:path. The exporter takes 127.0.0.1:4317 for an error and goes to localhost.
		e.target = value
		return e, nil
	}
	u, err := url.Parse(value)
	switch {
	case err != nil:
		return Endpoint{}, fmt.Errorf("%s: %w; write http://HOST:PORT, or https://HOST:PORT for TLS", variable, err)
	case (u.Scheme == "http" || u.Scheme == "https") && u.Host == "":
		return Endpoint{}, fmt.Errorf("%s=%s names no host; write http://HOST:PORT, or https://HOST:PORT for TLS", variable, value)
	}
	return e, nil
}

func contains(list, word string) bool {
	for _, w := range strings.Split(list, ",") {
		if strings.TrimSpace(w) == word {
			return true
		}
	}
	return false
}

// check reads what the exporter will read.
func (r signalVariables) check() error {
	var errs []error
	if v, variable := r.value("PROTOCOL"); v != "" && v != "grpc" {
		errs = append(errs, fmt.Errorf("%s=%s: this agent speaks grpc alone; set it to grpc and point the endpoint at the receiver's gRPC port (4317 by custom)", variable, v))
	}
	if v, variable := r.value("COMPRESSION"); v != "" && v != "gzip" && v != "none" {
		errs = append(errs, fmt.Errorf("%s=%s must be gzip or none", variable, v))
	}
	if v, variable := r.value("TIMEOUT"); v != "" {
		if ms, err := strconv.Atoi(v); err != nil || ms < 1 {
			errs = append(errs, fmt.Errorf("%s=%s must be a number of milliseconds, 1 or more", variable, v))
		}
	}
	if v, variable := r.value("HEADERS"); v != "" {
		for _, pair := range strings.Split(v, ",") {
			name, value, ok := strings.Cut(pair, "=")
			if _, err := url.PathUnescape(value); !ok || strings.TrimSpace(name) == "" || err != nil {
				// The value may be a secret: it is not shown.
				errs = append(errs, fmt.Errorf("%s must be name=value pairs separated by commas, values percent-encoded", variable))
				break
			}
		}
	}
	if path, variable := r.value("CERTIFICATE"); path != "" {
		pem, err := os.ReadFile(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", variable, err))
		} else if !x509.NewCertPool().AppendCertsFromPEM(pem) {
			errs = append(errs, fmt.Errorf("%s: %s holds no certificate in PEM form", variable, path))
		}
	}
	certificate, certificateVariable := r.value("CLIENT_CERTIFICATE")
	key, keyVariable := r.value("CLIENT_KEY")
	switch {
	case certificate != "" && key == "":
		errs = append(errs, fmt.Errorf("%s is set, but %sCLIENT_KEY is not: both are needed", certificateVariable, otlpPrefix))
	case certificate == "" && key != "":
		errs = append(errs, fmt.Errorf("%s is set, but %sCLIENT_CERTIFICATE is not: both are needed", keyVariable, otlpPrefix))
	case certificate != "":
		if _, err := tls.LoadX509KeyPair(certificate, key); err != nil {
			errs = append(errs, fmt.Errorf("%s and %s: %w", certificateVariable, keyVariable, err))
		}
	}
	return errors.Join(errs...)
}
