package etcdtest

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// Users is what an administrator does before an etcd of his serves particle too.
type Users struct {
	Endpoint string // https://ADDRESS:PORT
	TLS      *tls.Config
	Dial     func(ctx context.Context, addr string) (net.Conn, error)

	Root           string // the password of root
	User, Password string // of particle
	Prefix         string // all that the user may read and write
}

// Make adds the users and turns authentication on.
func (u Users) Make(ctx context.Context) error {
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{u.Endpoint}, TLS: u.TLS, DialOptions: []grpc.DialOption{grpc.WithContextDialer(u.Dial)},
	})
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := c.UserAdd(ctx, "root", u.Root); err != nil {
		return err
	}
	_, errRoot := c.UserGrantRole(ctx, "root", "root")
	_, errRole := c.RoleAdd(ctx, u.User)
	_, errGrant := c.RoleGrantPermission(ctx, u.User, u.Prefix, clientv3.GetPrefixRangeEnd(u.Prefix), clientv3.PermissionType(clientv3.PermReadWrite))
	_, errUser := c.UserAdd(ctx, u.User, u.Password)
	_, errGive := c.UserGrantRole(ctx, u.User, u.User)
	_, errAuth := c.AuthEnable(ctx)
	return errors.Join(errRoot, errRole, errGrant, errUser, errGive, errAuth)
}
