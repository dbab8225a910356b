package server

import (
	"maps"
	"strings"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
)

// StoreStatus is what GetStatus says of the record store.
type StoreStatus struct {
	// Records in the store.
	Records int64
	// Undelivered records, by "destination/signal".
	Undelivered map[string]int64
}

// Status is the answer to GetStatus.
func (s *Server) Status() *prov4mlv1.GetStatusResponse {
	res := &prov4mlv1.GetStatusResponse{Version: s.cfg.Version, Counters: map[string]uint64{}}
	tracker := s.tracker.Status()
	maps.Copy(res.Counters, tracker.Counters)
	for _, source := range s.cfg.Counters {
		maps.Copy(res.Counters, source())
	}
	s.counters.read(res.Counters)
	res.Counters[openConnections] = uint64(s.conns.len())
	for _, p := range tracker.Probes {
		reason := p.Reason
		if p.Cure != "" {
			reason += ": " + p.Cure
		}
		res.Probes = append(res.Probes, &prov4mlv1.ProbeStatus{
			Name: p.Name, Ok: p.OK, Source: strings.ToLower(p.Source.String()), Reason: reason,
		})
	}
	if s.cfg.Store != nil {
		st := s.cfg.Store()
		res.Records, res.Undelivered = st.Records, st.Undelivered
	}
	return res
}
