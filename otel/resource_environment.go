package otel

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/sdk/resource"

	"github.com/prov4ml/agent/otel/names"
)

// ResourceFromEnvironment returns the resource attributes of OTEL_RESOURCE_ATTRIBUTES, as text, and apart from them the service's
// name: that of OTEL_SERVICE_NAME, else theirs; empty = neither says one.
func ResourceFromEnvironment() (serviceName string, attributes map[string]string, err error) {
	from, err := resource.New(context.Background(), resource.WithFromEnv())
	if err != nil {
		return "", nil, fmt.Errorf("read OTEL_RESOURCE_ATTRIBUTES (key=value,key=value): %w", err)
	}
	attributes = map[string]string{}
	for _, kv := range from.Attributes() {
		attributes[string(kv.Key)] = kv.Value.String()
	}
	serviceName = attributes[names.ServiceName]
	delete(attributes, names.ServiceName)
	return serviceName, attributes, nil
}
