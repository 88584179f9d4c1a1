package etcdtest

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// Users is what an administrator does before an etcd of his serves particle too.
type Users struct {
	Endpoint string // http://ADDRESS:PORT

	Root           string // the password of root
	User, Password string // of particle
	Prefix         string // all that the user may read and write
}

// Make adds the users and turns authentication on. What fails can be repeated,
// unless it is the last step whose answer was lost.
func (u Users) Make(ctx context.Context) error {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{u.Endpoint}, Logger: zap.NewNop()})
	if err != nil {
		return err
	}
	defer c.Close()
	for _, step := range []func(context.Context) error{
		func(ctx context.Context) error { _, err := c.UserAdd(ctx, "root", u.Root); return err },
		func(ctx context.Context) error { _, err := c.RoleAdd(ctx, "root"); return err },
		func(ctx context.Context) error { _, err := c.UserGrantRole(ctx, "root", "root"); return err },
		func(ctx context.Context) error { _, err := c.RoleAdd(ctx, u.User); return err },
		func(ctx context.Context) error {
			_, err := c.RoleGrantPermission(ctx, u.User, u.Prefix, clientv3.GetPrefixRangeEnd(u.Prefix), clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		func(ctx context.Context) error { _, err := c.UserAdd(ctx, u.User, u.Password); return err },
		func(ctx context.Context) error { _, err := c.UserGrantRole(ctx, u.User, u.User); return err },
		func(ctx context.Context) error { _, err := c.AuthEnable(ctx); return err },
	} {
		bounded, cancel := context.WithTimeout(ctx, time.Minute)
		err := step(bounded)
		cancel()
		// An earlier attempt may have come so far.
		if err != nil && !errors.Is(err, rpctypes.ErrUserAlreadyExist) && !errors.Is(err, rpctypes.ErrRoleAlreadyExist) {
			return err
		}
	}
	return nil
}
