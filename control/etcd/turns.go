package etcd

import (
	"maps"
	"sync"
	"time"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/balancer/roundrobin"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// avoided is how long a server is passed over that was silent, or refused.
const avoided = 10 * attempt

// turns is what gRPC calls a balancer: questions and watches go from server to server in
// turn, but past those that have been in trouble lately, as long as there are others. In
// turn alone, two questions at once may both meet a silent server twice.
type turns struct{ balancer.Builder }

const turnsName = "particle_turns"

// gRPC knows balancers by their names, and wants to be told before anything else runs.
func init() { balancer.Register(turns{balancer.Get(roundrobin.Name)}) }

func (turns) Name() string { return turnsName }

func (b turns) Build(cc balancer.ClientConn, o balancer.BuildOptions) balancer.Balancer {
	return b.Builder.Build(&servers{ClientConn: cc, trouble: map[balancer.SubConn]time.Time{}}, o)
}

// servers are those of one client.
type servers struct {
	balancer.ClientConn
	mu      sync.Mutex
	trouble map[balancer.SubConn]time.Time
}

func (s *servers) UpdateState(state balancer.State) {
	state.Picker = turn{state.Picker, s}
	s.ClientConn.UpdateState(state)
}

type turn struct {
	inTurn balancer.Picker
	*servers
}

// Pick takes the next server that is in no trouble, or else the one whose trouble is the
// longest ago.
func (t turn) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.trouble, func(_ balancer.SubConn, at time.Time) bool { return time.Since(at) > avoided })
	best, err := t.inTurn.Pick(info)
	if err != nil {
		return best, err
	}
	for first := best.SubConn; !t.trouble[best.SubConn].IsZero(); {
		next, err := t.inTurn.Pick(info)
		if err != nil || next.SubConn == first {
			break
		}
		if t.trouble[next.SubConn].Before(t.trouble[best.SubConn]) {
			best = next
		}
	}
	best.Done = func(d balancer.DoneInfo) { t.learn(best.SubConn, d.Err) }
	return best, nil
}

// learn notes how a question to a server has ended, or a watch.
func (s *servers) learn(server balancer.SubConn, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch status.Code(err) {
	case codes.DeadlineExceeded, codes.Unavailable:
		s.trouble[server] = time.Now()
	case codes.Canceled: // by this host
	default:
		delete(s.trouble, server)
	}
}
