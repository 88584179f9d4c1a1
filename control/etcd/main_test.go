package etcd_test

import (
	"testing"

	"github.com/particle-net/particle/control/controltest/etcdtest"
)

func TestMain(m *testing.M) { etcdtest.Main(m) }
