package integration

// entry is an entrypoint script.
func entry(body string) map[string]string {
	return map[string]string{"docker-entrypoint.sh": "#!/bin/sh\nset -e\n" + body}
}

// through makes the script the entrypoint.
const through = "COPY docker-entrypoint.sh /usr/local/bin/\nENTRYPOINT [\"docker-entrypoint.sh\"]\n"

// fleet has the longest voyages first: two sail at a time.
var fleet = []ship{
	{name: "cron",
		recipe: install("cron logrotate") + "COPY tick /etc/cron.d/tick\nCOPY hourly /etc/cron.hourly/own\nCOPY crontab /etc/crontab\nCOPY user /var/spool/cron/crontabs/daemon\nRUN chmod 644 /etc/cron.d/tick /etc/crontab && chmod 755 /etc/cron.hourly/own && chown daemon:crontab /var/spool/cron/crontabs/daemon && chmod 600 /var/spool/cron/crontabs/daemon && mkdir /var/ticks && chmod 1777 /var/ticks\nVOLUME /var/ticks\nHEALTHCHECK --interval=2s CMD test -e /run/crond.pid\nCMD [\"cron\", \"-f\"]\n",
		files: map[string]string{
			"tick":    "PATH=/usr/bin:/bin\n* * * * * root date >> /var/ticks/log && gzip -kf /var/ticks/log\n",
			"hourly":  "#!/bin/sh\nset -e\nls /etc | sort | uniq | wc -l >> /var/ticks/hourly\n/usr/sbin/logrotate -f /etc/logrotate.d/dpkg\n",
			"crontab": "SHELL=/bin/sh\nPATH=/usr/local/sbin:/usr/local/bin:/sbin:/bin:/usr/sbin:/usr/bin\n* *\t* * *\troot\tcd / && run-parts --report /etc/cron.hourly\n",
			"user":    "MAILTO=\"\"\n* * * * * /usr/bin/id -un > /var/ticks/user; find /var/ticks -name '*.old' -exec rm {} +\n"},
		load:   []string{"true"},
		rotate: []string{"exec for i in $(seq 65); do test -s /var/ticks/log.gz && test -s /var/ticks/hourly && grep -q daemon /var/ticks/user && exit 0; sleep 1; done; exit 1"},
		status: "any",
	},
	{name: "tomcat",
		recipe: install("tomcat10 openjdk-17-jre-headless curl") + "RUN mkdir /srv/tomcat && cd /srv/tomcat && mkdir logs temp work && cp -rL /etc/tomcat10 conf && cp -rL /var/lib/tomcat10/webapps . && chown -R tomcat .\nENV CATALINA_HOME=/usr/share/tomcat10 CATALINA_BASE=/srv/tomcat JAVA_HOME=/usr/lib/jvm/java-17-openjdk-amd64 CATALINA_OPTS=-Xmx128m\nEXPOSE 8080\nUSER tomcat\nHEALTHCHECK --interval=3s CMD curl -fsS -o /dev/null http://127.0.0.1:8080/index.html || exit 1\nCMD [\"/usr/share/tomcat10/bin/catalina.sh\", \"run\"]\n",
		load:   []string{"ab -q -k -n 500 -c 8 http://$S:8080/index.html"},
		reload: []string{"signal QUIT"},
		status: "143",
	},
	{name: "mariadb",
		recipe: install("mariadb-server gosu") + "RUN rm -rf /var/lib/mysql && mkdir /var/lib/mysql && chown mysql:mysql /var/lib/mysql && sed -i 's/^bind-address.*/bind-address=0.0.0.0/' /etc/mysql/mariadb.conf.d/50-server.cnf\nVOLUME /var/lib/mysql\n" + through +
			"EXPOSE 3306\nHEALTHCHECK --interval=3s CMD mariadb-admin ping -h 127.0.0.1 -u app -psecret --silent\nCMD [\"mariadbd\"]\n",
		files: map[string]string{"docker-entrypoint.sh": `#!/bin/bash
set -eo pipefail
if [ "$(id -u)" = "0" ]; then
	mkdir -p /run/mysqld
	chown mysql:mysql /run/mysqld
	find /var/lib/mysql \! -user mysql -exec chown mysql: '{}' +
	exec gosu mysql "${BASH_SOURCE[0]}" "$@"
fi
if [ ! -d /var/lib/mysql/mysql ]; then
	mariadb-install-db --datadir=/var/lib/mysql --skip-test-db --auth-root-authentication-method=normal >/dev/null
	"$@" --skip-networking --socket=/run/mysqld/init.sock &
	pid=$!
	for i in {30..0}; do
		if mariadb --socket=/run/mysqld/init.sock -u root -e 'SELECT 1' &>/dev/null; then
			break
		fi
		sleep 1
	done
	mariadb --socket=/run/mysqld/init.sock -u root <<-EOSQL
		CREATE DATABASE app;
		CREATE USER 'app'@'%' IDENTIFIED BY 'secret';
		GRANT ALL ON *.* TO 'app'@'%';
	EOSQL
	kill "$pid"
	wait "$pid"
fi
exec "$@"
`},
		load:    []string{"mariadb-slap -h $S -u app -psecret --auto-generate-sql --concurrency=4 --number-of-queries=200 --engine=innodb", "mariadb -h $S -u app -psecret app -e 'CREATE TABLE IF NOT EXISTS t (a INT PRIMARY KEY AUTO_INCREMENT, b TEXT, FULLTEXT(b)) ENGINE=InnoDB; INSERT INTO t (b) VALUES (REPEAT(\"x\",1000)); ALTER TABLE t ADD COLUMN IF NOT EXISTS c INT; SELECT SLEEP(0.1), COUNT(*) FROM t; OPTIMIZE TABLE t; CHECK TABLE t'", "mariadb-dump -h $S -u app -psecret app | grep -q Dump"},
		reload:  []string{"signal HUP", "mariadb -h $S -u app -psecret -e 'FLUSH PRIVILEGES; FLUSH TABLES'"},
		rotate:  []string{"mariadb -h $S -u app -psecret -e \"SET GLOBAL slow_query_log_file='/var/lib/mysql/slow.log'; SET GLOBAL slow_query_log=1; SET GLOBAL long_query_time=0\"", "exec mv /var/lib/mysql/slow.log /var/lib/mysql/slow.log.1", "mariadb -h $S -u app -psecret -e 'FLUSH LOGS; SELECT 1'", "exec test -e /var/lib/mysql/slow.log"},
		operate: []string{"exec mariadb -u app -psecret -e 'SHOW PROCESSLIST'"},
	},
	{name: "nginx",
		recipe: install("nginx-light curl") + "COPY docker-entrypoint.sh /\nCOPY 10-tune.sh /docker-entrypoint.d/\nCOPY default /etc/nginx/sites-available/default\n" +
			"ENTRYPOINT [\"/docker-entrypoint.sh\"]\nEXPOSE 80\nSTOPSIGNAL SIGQUIT\nHEALTHCHECK --interval=2s CMD curl -fsS -o /dev/null http://127.0.0.1/ || exit 1\nCMD [\"nginx\", \"-g\", \"daemon off;\"]\n",
		files: map[string]string{
			"docker-entrypoint.sh": `#!/bin/sh
set -e
if [ "$1" = nginx ] && /usr/bin/find /docker-entrypoint.d/ -mindepth 1 -maxdepth 1 -type f -print -quit | read v; then
	find /docker-entrypoint.d/ -follow -type f -print | sort -V | while read -r f; do
		case "$f" in
		*.sh) if [ -x "$f" ]; then echo "$0: Launching $f"; "$f"; fi ;;
		*) echo "$0: Ignoring $f" ;;
		esac
	done
fi
exec "$@"
`,
			"10-tune.sh": "#!/bin/sh\nset -e\nnproc > /tmp/processors\n",
			"default":    "proxy_cache_path /var/cache/nginx levels=1 keys_zone=c:1m;\nserver {\n listen 80;\n root /var/www/html;\n index index.nginx-debian.html;\n gzip on;\n access_log /var/log/nginx/access.log;\n location /proxied { proxy_cache c; proxy_cache_valid 1s; proxy_pass http://127.0.0.1:80/; }\n}\n",
		},
		load:   []string{"ab -q -k -n 1000 -c 8 http://$S/", "curl -fsS -o /dev/null --compressed http://$S/proxied"},
		reload: []string{"signal HUP", "exec nginx -t", "exec nginx -s reload", "sleep 1"},
		rotate: []string{"exec mv /var/log/nginx/access.log /var/log/nginx/access.log.1", "signal USR1", "curl -fsS -o /dev/null http://$S/", "exec grep -q curl /var/log/nginx/access.log"},
	},
	{name: "memcached",
		recipe: install("memcached netcat-openbsd") + through + "USER memcache\nEXPOSE 11211\n" +
			"HEALTHCHECK --interval=2s CMD printf 'version\\r\\nquit\\r\\n' | nc 127.0.0.1 11211 | grep -q VERSION\nCMD [\"memcached\"]\n",
		files: entry("if [ \"${1#-}\" != \"$1\" ]; then\n\tset -- memcached \"$@\"\nfi\nexec \"$@\"\n"),
		load: []string{`printf 'set k 0 0 1\r\nv\r\nget k\r\nstats\r\nstats slabs\r\nincr n 1\r\nflush_all\r\nquit\r\n' | nc $S 11211 | grep -q VALUE`,
			`i=0; while [ $i -lt 20 ]; do head -c 100000 /dev/zero | tr '\0' x > /tmp/v; { printf 'set b%d 0 0 100000\r\n' $i; cat /tmp/v; printf '\r\nquit\r\n'; } | nc $S 11211 | grep -q STORED; i=$((i+1)); done`},
		operate: []string{"exec printf 'stats settings\\r\\nquit\\r\\n' | nc 127.0.0.1 11211 | grep -q maxconns"},
	},
	{name: "redis",
		recipe: install("redis-server redis-tools gosu") + "RUN mkdir -p /data && chown redis:redis /data\nVOLUME /data\nWORKDIR /data\n" + through +
			"EXPOSE 6379\nHEALTHCHECK --interval=2s CMD [\"redis-cli\", \"ping\"]\nCMD [\"redis-server\", \"--bind\", \"0.0.0.0\", \"--protected-mode\", \"no\", \"--save\", \"1 1\", \"--logfile\", \"/data/redis.log\"]\n",
		files:  entry("if [ \"$1\" = redis-server ] && [ \"$(id -u)\" = 0 ]; then\n\tfind . \\! -user redis -exec chown redis '{}' +\n\texec gosu redis \"$0\" \"$@\"\nfi\numask 0077\nexec \"$@\"\n"),
		load:   []string{"redis-benchmark -q -h $S -n 2000 -c 10 -t set,get,lpush", "redis-cli -h $S EVAL 'return 1' 0", "redis-cli -h $S CONFIG SET appendonly yes", "sleep 1.5", "redis-cli -h $S BGREWRITEAOF", "redis-cli -h $S CONFIG SET appendonly no"},
		rotate: []string{"exec mv /data/redis.log /data/redis.log.1", "redis-cli -h $S SAVE", "exec test -s /data/redis.log"},
	},
	{name: "lighttpd",
		recipe: install("lighttpd curl") + "RUN lighty-enable-mod accesslog status\nEXPOSE 80\nHEALTHCHECK --interval=2s CMD curl -fsS -o /dev/null http://127.0.0.1/ || exit 1\nCMD [\"lighttpd\", \"-D\", \"-f\", \"/etc/lighttpd/lighttpd.conf\"]\n",
		load:   []string{"ab -q -k -n 1000 -c 8 http://$S/", "ab -q -n 500 -c 8 http://$S/"},
		reload: []string{"signal USR1"},
		rotate: []string{"exec mv /var/log/lighttpd/access.log /var/log/lighttpd/access.log.1", "signal HUP", "curl -fsS -o /dev/null http://$S/", "sleep 5", "exec grep -q curl /var/log/lighttpd/access.log"},
	},
	{name: "bind9",
		recipe: install("bind9 bind9-dnsutils") + "COPY named.conf /etc/bind/named.conf\nCOPY db.example /etc/bind/\n" + through + "VOLUME /var/cache/bind /var/lib/bind\nEXPOSE 53/udp 53/tcp\n" +
			"HEALTHCHECK --interval=2s CMD dig +short +tries=1 @127.0.0.1 www.example.test | grep -q 192.0.2.1\nCMD [\"/usr/sbin/named\", \"-f\", \"-u\", \"bind\", \"-c\", \"/etc/bind/named.conf\"]\n",
		files: map[string]string{
			"docker-entrypoint.sh": "#!/bin/sh\nset -e\nmkdir -p -m 0775 /var/run/named\nchown root:bind /var/run/named\nchown -R bind:bind /var/cache/bind\nexec \"$@\"\n",
			"named.conf":           "include \"/etc/bind/rndc.key\";\ncontrols { inet 127.0.0.1 allow { localhost; } keys { \"rndc-key\"; }; };\noptions { directory \"/var/cache/bind\"; recursion no; dnssec-validation no; listen-on { any; }; };\nlogging { channel f { file \"/var/cache/bind/query.log\" versions 3 size 1m; severity info; }; category queries { f; }; };\nzone \"example.test\" { type master; file \"/etc/bind/db.example\"; };\n",
			"db.example":           "$TTL 60\n@ IN SOA ns root 1 60 60 60 60\n@ IN NS ns\nns IN A 192.0.2.53\nwww IN A 192.0.2.1\n"},
		load:    []string{"for i in 1 2 3 4 5; do dig +short @$S www.example.test | grep -q 192.0.2.1; dig +tcp +short @$S www.example.test | grep -q 192.0.2.1; done", "dig @$S example.test AXFR | grep -q ns.example.test", "dig @$S nothing.example.test | grep -q NXDOMAIN"},
		reload:  []string{"signal HUP", "exec rndc reload", "exec rndc reconfig", "exec rndc flush", "exec grep -q example /var/cache/bind/query.log"},
		operate: []string{"exec rndc status | grep -q running", "exec named-checkconf"},
	},
	{name: "apache-event",
		recipe: install("apache2 curl") + "COPY apache2-foreground /usr/local/bin/\nRUN a2enmod status rewrite headers ssl proxy_http && rm -f /var/log/apache2/*\nSTOPSIGNAL SIGWINCH\nEXPOSE 80 443\n" +
			"HEALTHCHECK --interval=2s CMD curl -fsS -o /dev/null http://127.0.0.1/server-status || exit 1\nCMD [\"apache2-foreground\"]\n",
		files:  map[string]string{"apache2-foreground": "#!/bin/bash\nset -e\n: \"${APACHE_CONFDIR:=/etc/apache2}\"\n: \"${APACHE_ENVVARS:=$APACHE_CONFDIR/envvars}\"\nif test -f \"$APACHE_ENVVARS\"; then\n\t. \"$APACHE_ENVVARS\"\nfi\n: \"${APACHE_RUN_DIR:=/var/run/apache2}\"\n: \"${APACHE_PID_FILE:=$APACHE_RUN_DIR/apache2.pid}\"\nfor e in \"${!APACHE_@}\"; do\n\tif [[ \"$e\" == *_DIR ]] && [[ \"${!e}\" == /* ]]; then\n\t\tmkdir -p \"${!e}\"\n\tfi\ndone\nrm -f \"$APACHE_PID_FILE\"\nexec apache2 -DFOREGROUND \"$@\"\n"},
		load:   []string{"ab -q -k -n 1000 -c 16 http://$S/", "ab -q -n 500 -c 8 http://$S/"},
		reload: []string{"signal USR1", "curl -fsS -o /dev/null http://$S/", "signal HUP"},
		rotate: []string{"exec mv /var/log/apache2/access.log /var/log/apache2/access.log.1", "signal USR1", "curl -fsS -o /dev/null http://$S/", "exec grep -q curl /var/log/apache2/access.log"},
	},
	{name: "apache-php",
		recipe: install("apache2 libapache2-mod-php php-sqlite3 curl") + "COPY apache2-foreground /usr/local/bin/\nCOPY index.php /var/www/html/\nRUN a2dismod mpm_event && a2enmod mpm_prefork php8.2 && rm /var/www/html/index.html && mkdir /var/www/data && chown www-data /var/www/data\nVOLUME /var/www/data\nSTOPSIGNAL SIGWINCH\nEXPOSE 80\n" +
			"HEALTHCHECK --interval=2s CMD curl -fsS http://127.0.0.1/ | grep -q fine\nCMD [\"apache2-foreground\"]\n",
		files: map[string]string{"apache2-foreground": "#!/bin/sh\nset -e\n. /etc/apache2/envvars\nmkdir -p $APACHE_RUN_DIR $APACHE_LOCK_DIR\nexec apache2 -DFOREGROUND \"$@\"\n",
			"index.php": `<?php
session_start();
$_SESSION['n'] = ($_SESSION['n'] ?? 0) + 1;
if (isset($_FILES['f'])) { move_uploaded_file($_FILES['f']['tmp_name'], '/var/www/data/upload'); }
$db = new PDO('sqlite:/var/www/data/db');
$db->exec('CREATE TABLE IF NOT EXISTS t (n INTEGER)');
$db->exec('INSERT INTO t VALUES (1)');
error_log('seen');
echo password_verify('x', password_hash('x', PASSWORD_BCRYPT, ['cost' => 4])) ? 'fine' : 'bad', ' ', date('c'), ' ', gethostbyname('localhost'), ' ', strlen(serialize(range(1, 1000)));
`},
		load:   []string{"ab -q -n 200 -c 8 http://$S/", "curl -fsS -F f=@/etc/passwd http://$S/ | grep -q fine"},
		reload: []string{"signal USR1"},
		rotate: []string{"exec mv /var/log/apache2/access.log /var/log/apache2/access.log.1", "signal HUP", "curl -fsS http://$S/ | grep -q fine", "exec test -s /var/log/apache2/access.log"},
	},
	{name: "haproxy",
		recipe: install("haproxy curl") + "COPY haproxy.cfg /etc/haproxy/haproxy.cfg\n" + through + "USER haproxy\nSTOPSIGNAL SIGUSR1\nEXPOSE 8080\nHEALTHCHECK --interval=2s CMD curl -fsS -o /dev/null http://127.0.0.1:8080/ || exit 1\nCMD [\"haproxy\", \"-f\", \"/etc/haproxy/haproxy.cfg\"]\n",
		files: map[string]string{
			"docker-entrypoint.sh": "#!/bin/sh\nset -e\nif [ \"${1#-}\" != \"$1\" ]; then\n\tset -- haproxy \"$@\"\nfi\nif [ \"$1\" = haproxy ]; then\n\tshift\n\tset -- haproxy -W -db \"$@\"\nfi\nexec \"$@\"\n",
			"haproxy.cfg":          "global\n  log stdout format raw local0\n  stats socket /tmp/haproxy.sock mode 600 level admin\ndefaults\n  mode http\n  log global\n  option httplog\n  timeout connect 5s\n  timeout client 5s\n  timeout server 5s\nfrontend f\n  bind :8080\n  http-request return status 200 content-type text/plain string fine if { path / }\n  default_backend b\nbackend b\n  server self 127.0.0.1:8080 check\n  http-request set-path /\n"},
		load:   []string{"ab -q -k -n 1000 -c 8 http://$S:8080/", "curl -fsS http://$S:8080/other | grep -q fine"},
		reload: []string{"signal USR2", "sleep 1", "signal HUP"},
	},
	{name: "squid",
		recipe: install("squid squidclient curl") + "COPY squid.conf /etc/squid/squid.conf\n" + through + "VOLUME /var/spool/squid\nEXPOSE 3128\nHEALTHCHECK --interval=3s CMD squidclient -h 127.0.0.1 mgr:info | grep -q HTTP\nCMD [\"-f\", \"/etc/squid/squid.conf\", \"-NYC\"]\n",
		files: map[string]string{
			"docker-entrypoint.sh": "#!/bin/bash\nset -e\nmkdir -p /var/log/squid /var/spool/squid\nchown -R proxy:proxy /var/log/squid /var/spool/squid\nif [[ ! -d /var/spool/squid/00 ]]; then\n\techo 'Initializing cache...'\n\t$(which squid) -N -f /etc/squid/squid.conf -z\nfi\nexec $(which squid) \"$@\"\n",
			"squid.conf":           "http_port 3128\nacl SSL_ports port 443\nhttp_access allow all\ncache_dir ufs /var/spool/squid 20 4 4\naccess_log stdio:/var/log/squid/access.log\npid_filename /run/squid.pid\nshutdown_lifetime 1 seconds\ncache_effective_user proxy\n"},
		load:   []string{"for i in 1 2 3 4 5; do curl -fsS -x http://$S:3128 http://127.0.0.1:3128/squid-internal-static/icons/SN.png -o /dev/null; done", "ab -q -n 200 -c 4 http://$S:3128/squid-internal-mgr/menu"},
		reload: []string{"signal HUP", "sleep 2"},
		rotate: []string{"exec mv /var/log/squid/access.log /var/log/squid/access.log.1", "signal USR1", "curl -fsS -x http://$S:3128 http://127.0.0.1:3128/squid-internal-static/icons/SN.png -o /dev/null", "sleep 1", "exec test -s /var/log/squid/access.log"},
	},
	{name: "sftp",
		recipe: install("openssh-server netcat-openbsd") + "COPY sshd_config /etc/ssh/sshd_config\nRUN rm -f /etc/ssh/ssh_host_*key* && mkdir -p /run/sshd /etc/ssh/keys && useradd -M -d / -s /usr/sbin/nologin up && sed -i /pam_motd/d /etc/pam.d/sshd && echo up:secret | chpasswd && mkdir -p /home/up/in && chown up /home/up/in\nVOLUME /home/up/in /etc/ssh/keys\n" + through + "EXPOSE 22\nHEALTHCHECK --interval=2s CMD nc -w 1 127.0.0.1 22 </dev/null | grep -q SSH\nCMD [\"/usr/sbin/sshd\", \"-D\", \"-e\"]\n",
		files: map[string]string{
			"docker-entrypoint.sh": "#!/bin/bash\nset -e\nfor kind in ed25519 rsa; do\n\tif [ ! -f /etc/ssh/keys/ssh_host_${kind}_key ]; then\n\t\tssh-keygen -q -t $kind -f /etc/ssh/keys/ssh_host_${kind}_key -N ''\n\tfi\ndone\nmkdir -p /run/sshd\nexec \"$@\"\n",
			"sshd_config":          "HostKey /etc/ssh/keys/ssh_host_ed25519_key\nHostKey /etc/ssh/keys/ssh_host_rsa_key\nPasswordAuthentication yes\nUsePAM yes\nUseDNS no\nPrintMotd no\nSubsystem sftp internal-sftp\nForceCommand internal-sftp\nChrootDirectory /home/%u\nAllowTcpForwarding no\n"},
		load:   []string{"for i in 1 2 3; do echo 'ls in\nput /etc/passwd in/s\nget in/s /tmp/got\nrm in/s' > /tmp/b; SSHPASS=secret sshpass -e sftp -o StrictHostKeyChecking=no -o BatchMode=no -o UserKnownHostsFile=/dev/null -b /tmp/b up@$S; done", "! SSHPASS=wrong sshpass -e sftp -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -b /dev/null up@$S"},
		reload: []string{"signal HUP", "sleep 1"},
	},
	{name: "dovecot",
		recipe: install("dovecot-imapd dovecot-pop3d netcat-openbsd") + "COPY dovecot.conf users /etc/dovecot/\nRUN mkdir -p /var/mail/vhosts && useradd -M vmail && chown vmail /var/mail/vhosts\nVOLUME /var/mail/vhosts\nEXPOSE 143 110\nHEALTHCHECK --interval=2s CMD echo 'a logout' | nc -w 2 127.0.0.1 143 | grep -q BYE\nCMD [\"dovecot\", \"-F\"]\n",
		files: map[string]string{
			"dovecot.conf": "protocols = imap pop3\nlisten = *\nssl = no\ndisable_plaintext_auth = no\nlog_path = /var/log/dovecot.log\nmail_location = maildir:/var/mail/vhosts/%u\npassdb {\n  driver = passwd-file\n  args = /etc/dovecot/users\n}\nuserdb {\n  driver = static\n  args = uid=vmail gid=vmail home=/var/mail/vhosts/%u\n}\n",
			"users":        "u:{PLAIN}secret\n"},
		load:    []string{"for i in 1 2 3; do curl -fsS imap://u:secret@$S/ | grep -q INBOX; done", "printf 'Subject: x\\r\\n\\r\\nhello\\r\\n' > /tmp/m; curl -fsS -T /tmp/m imap://u:secret@$S/INBOX", "curl -fsS 'imap://u:secret@'$S'/INBOX;UID=1' | grep -q hello", "curl -fsS pop3://u:secret@$S/1 | grep -q hello", "! curl -fsS imap://u:wrong@$S/"},
		reload:  []string{"signal HUP", "exec doveadm reload"},
		rotate:  []string{"exec mv /var/log/dovecot.log /var/log/dovecot.log.1", "signal USR1", "curl -fsS imap://u:secret@$S/", "exec test -s /var/log/dovecot.log"},
		operate: []string{"exec doveadm who"},
	},
	{name: "exim",
		recipe:  install("exim4-daemon-light netcat-openbsd") + "COPY exim4.conf /etc/exim4/exim4.conf\nRUN chown root:Debian-exim /etc/exim4/exim4.conf && chmod 640 /etc/exim4/exim4.conf && useradd -m rcpt\nVOLUME /var/spool/exim4 /var/mail\nEXPOSE 25\nHEALTHCHECK --interval=2s CMD printf 'QUIT\\r\\n' | nc -w 2 127.0.0.1 25 | grep -q ^220\nCMD [\"exim4\", \"-bdf\", \"-q30m\"]\n",
		files:   map[string]string{"exim4.conf": "primary_hostname = mail.test\ndomainlist local_domains = mail.test\nacl_smtp_rcpt = acl\nhost_lookup =\nrfc1413_query_timeout = 0s\nbegin acl\nacl:\n accept domains = +local_domains\n deny\nbegin routers\nlocal:\n driver = accept\n check_local_user\n transport = mbox\nbegin transports\nmbox:\n driver = appendfile\n file = /var/mail/$local_part_data\n group = mail\n mode = 0660\nbegin retry\n* * F,2h,15m\n"},
		load:    []string{"for i in 1 2 3; do printf 'From: a@b\\nSubject: s\\n\\nbody\\n' | curl -fsS smtp://$S --mail-from a@mail.test --mail-rcpt rcpt@mail.test -T -; done", "! printf 'x\\n' | curl -fsS smtp://$S --mail-from a@mail.test --mail-rcpt x@elsewhere.test -T -"},
		reload:  []string{"sleep 1", "exec grep -q body /var/mail/rcpt", "signal HUP"},
		rotate:  []string{"exec mv /var/log/exim4/mainlog /var/log/exim4/mainlog.1", "printf 'x\\n' | curl -fsS smtp://$S --mail-from a@mail.test --mail-rcpt rcpt@mail.test -T -", "exec test -s /var/log/exim4/mainlog"},
		operate: []string{"exec exim4 -bp"},
		status:  "any",
	},
	{name: "mosquitto",
		recipe: install("mosquitto mosquitto-clients") + "COPY mosquitto.conf /etc/mosquitto/mosquitto.conf\nRUN mkdir -p /mosquitto/data /mosquitto/log && chown -R mosquitto /mosquitto\nVOLUME /mosquitto/data /mosquitto/log\n" + through + "EXPOSE 1883\nHEALTHCHECK --interval=2s CMD mosquitto_pub -h 127.0.0.1 -t health -m x\nCMD [\"/usr/sbin/mosquitto\", \"-c\", \"/etc/mosquitto/mosquitto.conf\"]\n",
		files: map[string]string{
			"docker-entrypoint.sh": "#!/bin/sh\nset -e\nuser=\"$(id -u)\"\nif [ \"$user\" = '0' ]; then\n\t[ -d \"/mosquitto\" ] && chown -R mosquitto:mosquitto /mosquitto || true\nfi\nexec \"$@\"\n",
			"mosquitto.conf":       "listener 1883\nallow_anonymous true\npersistence true\npersistence_location /mosquitto/data/\nautosave_interval 1\nlog_dest file /mosquitto/log/m.log\nuser mosquitto\n"},
		load:   []string{"mosquitto_sub -h $S -t x -C 3 > /tmp/out$$ & p=$!; sleep 0.5; for i in 1 2 3; do mosquitto_pub -h $S -q 1 -r -t x -m hello; done; wait $p", "mosquitto_sub -h $S -q 2 -t x -C 1 -W 5 | grep -q hello"},
		reload: []string{"signal HUP", "signal USR1"},
		rotate: []string{"exec mv /mosquitto/log/m.log /mosquitto/log/m.log.1", "signal HUP", "mosquitto_pub -h $S -t x -m y", "exec test -s /mosquitto/log/m.log"},
	},
	{name: "unbound",
		recipe:  install("unbound bind9-dnsutils openssl") + "COPY unbound.conf /etc/unbound/unbound.conf\nRUN unbound-control-setup && mkdir -p /var/log/unbound && chown unbound /var/log/unbound\nEXPOSE 53/udp 53/tcp\nHEALTHCHECK --interval=2s CMD dig +short +tries=1 @127.0.0.1 www.test | grep -q 192.0.2.7\nCMD [\"unbound\", \"-d\", \"-c\", \"/etc/unbound/unbound.conf\"]\n",
		files:   map[string]string{"unbound.conf": "server:\n interface: 0.0.0.0\n access-control: 0.0.0.0/0 allow\n do-ip6: no\n use-syslog: no\n logfile: \"/var/log/unbound/unbound.log\"\n log-queries: yes\n chroot: \"\"\n pidfile: \"/run/unbound.pid\"\n directory: \"/etc/unbound\"\n local-zone: \"test.\" static\n local-data: \"www.test. A 192.0.2.7\"\nremote-control:\n control-enable: yes\n"},
		load:    []string{"for i in 1 2 3 4 5; do dig +short @$S www.test | grep -q 192.0.2.7; dig +tcp +short @$S www.test | grep -q 192.0.2.7; done", "dig @$S no.test | grep -q NXDOMAIN"},
		reload:  []string{"signal HUP", "exec unbound-control reload", "sleep 1"},
		operate: []string{"exec unbound-control status", "exec unbound-control stats", "exec unbound-checkconf"},
	},
	{name: "dnsmasq",
		recipe: install("dnsmasq-base bind9-dnsutils") + "RUN mkdir -p /var/log/dnsmasq && chown nobody /var/log/dnsmasq\nEXPOSE 53/udp 53/tcp\nHEALTHCHECK --interval=2s CMD dig +short +tries=1 @127.0.0.1 www.test | grep -q 192.0.2.7\nENTRYPOINT [\"dnsmasq\", \"--keep-in-foreground\"]\nCMD [\"--no-resolv\", \"--address=/www.test/192.0.2.7\", \"--log-queries\", \"--log-facility=/var/log/dnsmasq/d.log\", \"--user=nobody\"]\n",
		load:   []string{"for i in 1 2 3 4 5; do dig +short @$S www.test | grep -q 192.0.2.7; dig +tcp +short @$S www.test | grep -q 192.0.2.7; done"},
		reload: []string{"signal HUP", "signal USR1"},
		rotate: []string{"exec mv /var/log/dnsmasq/d.log /var/log/dnsmasq/d.log.1", "signal USR2", "dig +short @$S www.test", "exec grep -q www.test /var/log/dnsmasq/d.log"},
	},
	{name: "slapd",
		recipe:  install("slapd ldap-utils") + "VOLUME /var/lib/ldap\nEXPOSE 389\nHEALTHCHECK --interval=2s CMD ldapsearch -x -H ldap://127.0.0.1 -b '' -s base namingContexts | grep -q nodomain\nCMD [\"slapd\", \"-d\", \"0\", \"-h\", \"ldap:/// ldapi:///\", \"-u\", \"openldap\", \"-g\", \"openldap\", \"-F\", \"/etc/ldap/slapd.d\"]\n",
		load:    []string{"for i in 1 2 3; do ldapsearch -x -H ldap://$S -b dc=nodomain | grep -q dc=nodomain; done"},
		operate: []string{"exec ldapsearch -Y EXTERNAL -H ldapi:/// -b cn=config cn=config", "exec printf 'dn: ou=p%s,dc=nodomain\\nchangetype: add\\nobjectClass: organizationalUnit\\n' $(date +%s) > /tmp/l; slapcat -n 0 | grep -q cn=config"},
	},
	{name: "rsync",
		recipe: install("rsync netcat-openbsd") + "COPY rsyncd.conf /etc/rsyncd.conf\nRUN mkdir -p /srv/pub /srv/in && chown nobody /srv/in && cp -r /usr/share/doc /srv/pub/\nVOLUME /srv/in\nEXPOSE 873\nHEALTHCHECK --interval=2s CMD nc -w 1 127.0.0.1 873 </dev/null | grep -q RSYNCD\nCMD [\"rsync\", \"--daemon\", \"--no-detach\", \"--log-file=/var/log/rsyncd.log\"]\n",
		files:  map[string]string{"rsyncd.conf": "[pub]\npath = /srv/pub\n[in]\npath = /srv/in\nread only = no\nuid = nobody\ngid = nogroup\n"},
		load:   []string{"rsync -az rsync://$S/pub/ /tmp/pub/", "rsync -a --checksum rsync://$S/pub/ /tmp/pub2/; rm -rf /tmp/pub2", "rsync -rt /tmp/pub/doc/rsync rsync://$S/in/"},
		rotate: []string{"exec mv /var/log/rsyncd.log /var/log/rsyncd.log.1", "rsync rsync://$S/", "exec test -s /var/log/rsyncd.log"},
	},
	{name: "git",
		recipe: install("git netcat-openbsd") + "RUN git init -q --bare /srv/repo.git && git -C /srv/repo.git config daemon.receivepack true && cd /tmp && git init -q w && cd w && for i in 1 2 3; do head -c 200000 /dev/urandom | base64 > $i; git add .; git -c user.email=a@b -c user.name=n commit -qm $i; done; git push -q /srv/repo.git HEAD:main && git -C /srv/repo.git symbolic-ref HEAD refs/heads/main && chown -R nobody /srv/repo.git\nVOLUME /srv/repo.git\nUSER nobody\nEXPOSE 9418\nHEALTHCHECK --interval=2s CMD git ls-remote git://127.0.0.1/repo.git | grep -q main\nCMD [\"git\", \"daemon\", \"--export-all\", \"--base-path=/srv\", \"--reuseaddr\", \"--informative-errors\"]\n",
		load:   []string{"rm -rf /tmp/c; git clone -q git://$S/repo.git /tmp/c", "cd /tmp/c && date +%N > n && git add . && git -c user.email=a@b -c user.name=n commit -qm x && git push -q origin HEAD", "rm -rf /tmp/c; git clone -q --depth 1 git://$S/repo.git /tmp/c"},
		status: "any",
	},
	{name: "node",
		recipe: install("nodejs") + "WORKDIR /app\nCOPY server.js /app/\nUSER nobody\nEXPOSE 8080\nHEALTHCHECK --interval=2s CMD [\"node\", \"-e\", \"require('http').get('http://127.0.0.1:8080/', r => process.exit(r.statusCode == 200 ? 0 : 1)).on('error', () => process.exit(1))\"]\n" + through + "CMD [\"node\", \"server.js\"]\n",
		files: map[string]string{
			"docker-entrypoint.sh": "#!/bin/sh\nset -e\n# Run command with node if the first argument contains a \"-\" or is not a system command.\nif [ \"${1#-}\" != \"${1}\" ] || [ -z \"$(command -v \"${1}\")\" ] || { [ -f \"${1}\" ] && ! [ -x \"${1}\" ]; }; then\n  set -- node \"$@\"\nfi\nexec \"$@\"\n",
			"server.js": `const http = require('http'), zlib = require('zlib'), fs = require('fs'), crypto = require('crypto'), dns = require('dns');
const { Worker } = require('worker_threads');
const server = http.createServer((q, r) => {
  if (q.url == '/heavy') {
    crypto.pbkdf2('x', 'y', 1000, 32, 'sha256', (e, key) => {
      fs.writeFile('/tmp/node-' + process.pid, key, () => zlib.gzip(Buffer.alloc(1 << 20), (e, z) => {
        dns.lookup('localhost', () => {
          const w = new Worker('require("worker_threads").parentPort.postMessage(1)', { eval: true });
          w.on('message', () => r.end('heavy ' + z.length));
        });
      }));
    });
    return;
  }
  r.end('fine\n');
}).listen(8080);
process.on('SIGHUP', () => console.log('hangup'));
process.on('SIGTERM', () => { server.close(); server.closeAllConnections && server.closeAllConnections(); setTimeout(() => process.exit(0), 100); });
`},
		load:   []string{"ab -q -k -n 1000 -c 8 http://$S:8080/", "for i in 1 2 3; do curl -fsS http://$S:8080/heavy | grep -q heavy; done"},
		reload: []string{"signal HUP", "log hangup"},
	},
	{name: "php-fpm",
		recipe: install("php-fpm libfcgi-bin") + "COPY www.conf /etc/php/8.2/fpm/pool.d/www.conf\nCOPY index.php /var/www/html/\nEXPOSE 9000\nSTOPSIGNAL SIGQUIT\nHEALTHCHECK --interval=2s CMD SCRIPT_NAME=/ping SCRIPT_FILENAME=/ping REQUEST_METHOD=GET cgi-fcgi -bind -connect 127.0.0.1:9000 | grep -q pong\n" + through + "CMD [\"php-fpm8.2\", \"-F\"]\n",
		files: map[string]string{
			"docker-entrypoint.sh": "#!/bin/sh\nset -e\nif [ \"${1#-}\" != \"$1\" ]; then\n\tset -- php-fpm8.2 \"$@\"\nfi\nexec \"$@\"\n",
			"www.conf":             "[www]\nuser = www-data\ngroup = www-data\nlisten = 9000\npm = dynamic\npm.max_children = 5\npm.start_servers = 2\npm.min_spare_servers = 1\npm.max_spare_servers = 3\nping.path = /ping\naccess.log = /var/log/fpm-access.log\n",
			"index.php":            "<?php file_put_contents('/tmp/p', serialize(range(1, 1000))); echo 'fine ', md5_file('/tmp/p'), json_encode(opcache_get_status(false) !== false);\n"},
		load:   []string{"for i in $(seq 20); do SCRIPT_NAME=/index.php SCRIPT_FILENAME=/var/www/html/index.php REQUEST_METHOD=GET cgi-fcgi -bind -connect $S:9000 | grep -q fine; done"},
		reload: []string{"signal USR2", "sleep 1"},
		rotate: []string{"exec mv /var/log/fpm-access.log /var/log/fpm-access.log.1", "signal USR1", "SCRIPT_NAME=/index.php SCRIPT_FILENAME=/var/www/html/index.php REQUEST_METHOD=GET cgi-fcgi -bind -connect $S:9000", "exec test -s /var/log/fpm-access.log"},
	},
	{name: "gunicorn",
		recipe: install("gunicorn python3 curl") + "WORKDIR /app\nCOPY app.py /app/\nENV PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1\nRUN useradd -r app && mkdir /var/log/app && chown app /var/log/app\nUSER app\nEXPOSE 8000\nHEALTHCHECK --interval=2s CMD curl -fsS -o /dev/null http://127.0.0.1:8000/ || exit 1\nCMD [\"gunicorn\", \"-w\", \"2\", \"-b\", \"0.0.0.0:8000\", \"--access-logfile\", \"/var/log/app/access.log\", \"app:app\"]\n",
		files:  map[string]string{"app.py": "import hashlib, json, sqlite3, tempfile, threading, socket, ssl, zlib, decimal, uuid\n\ndef app(environ, start_response):\n    with tempfile.NamedTemporaryFile() as f:\n        f.write(b'x' * 10000)\n    db = sqlite3.connect(':memory:')\n    db.execute('create table t (a)')\n    t = threading.Thread(target=lambda: socket.getaddrinfo('localhost', 80))\n    t.start()\n    t.join()\n    body = json.dumps({'h': hashlib.sha256(uuid.uuid4().bytes).hexdigest(), 'c': str(ssl.create_default_context())}).encode()\n    start_response('200 OK', [('Content-Type', 'application/json'), ('Content-Length', str(len(body)))])\n    return [body]\n"},
		load:   []string{"ab -q -n 200 -c 4 -l http://$S:8000/"},
		reload: []string{"signal HUP", "sleep 1", "signal TTIN", "signal TTOU"},
		rotate: []string{"exec mv /var/log/app/access.log /var/log/app/access.log.1", "signal USR1", "curl -fsS -o /dev/null http://$S:8000/", "exec test -s /var/log/app/access.log"},
	},
	{name: "python-http",
		recipe: install("python3") + "WORKDIR /srv\nRUN mkdir -p /srv/d && cp /etc/passwd /srv/d/\nUSER nobody\nEXPOSE 8000\nHEALTHCHECK --interval=3s CMD [\"python3\", \"-c\", \"import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/')\"]\nSTOPSIGNAL SIGINT\nCMD [\"python3\", \"-m\", \"http.server\", \"8000\"]\n",
		load:   []string{"ab -q -n 100 -c 4 http://$S:8000/", "curl -fsS http://$S:8000/d/passwd | grep -q root"},
		status: "any",
	},
	{name: "starman",
		recipe: install("starman curl") + "COPY app.psgi /app/\nRUN mkdir -p /var/log/app && chown nobody /var/log/app\nUSER nobody\nEXPOSE 5000\nHEALTHCHECK --interval=2s CMD curl -fsS -o /dev/null http://127.0.0.1:5000/ || exit 1\nSTOPSIGNAL SIGQUIT\nCMD [\"starman\", \"--listen\", \"0.0.0.0:5000\", \"--workers\", \"2\", \"--access-log\", \"/var/log/app/access.log\", \"/app/app.psgi\"]\n",
		files:  map[string]string{"app.psgi": "use strict; use Digest::SHA qw(sha256_hex); use File::Temp; use Time::HiRes; use Socket;\nsub { my $f = File::Temp->new; print $f 'x'; my $h = sha256_hex(rand); my @a = gethostbyname('localhost'); Time::HiRes::usleep(10); [200, ['Content-Type' => 'text/plain'], [\"fine $h\"]] };\n"},
		load:   []string{"ab -q -n 200 -c 4 http://$S:5000/"},
		reload: []string{"signal HUP", "sleep 1"},
	},
	{name: "puma",
		recipe: install("puma ruby curl") + "WORKDIR /app\nCOPY config.ru /app/\nUSER nobody\nENV HOME=/tmp\nEXPOSE 9292\nHEALTHCHECK --interval=2s CMD curl -fsS -o /dev/null http://127.0.0.1:9292/ || exit 1\nCMD [\"puma\", \"-b\", \"tcp://0.0.0.0:9292\", \"-w\", \"2\", \"-t\", \"1:4\", \"config.ru\"]\n",
		files:  map[string]string{"config.ru": "require 'digest'\nrequire 'tempfile'\nrequire 'socket'\nrun lambda { |env| Tempfile.create('x') { |f| f.write('y' * 1000) }; Addrinfo.getaddrinfo('localhost', 80); [200, {'content-type' => 'text/plain'}, [\"fine \" + Digest::SHA256.hexdigest(rand.to_s)]] }\n"},
		load:   []string{"ab -q -n 300 -c 4 http://$S:9292/"},
		reload: []string{"signal USR1", "sleep 3"},
		status: "any",
	},
	{name: "etcd",
		recipe:  install("etcd-server etcd-client") + "VOLUME /data\nEXPOSE 2379\nENV ETCDCTL_API=3\nHEALTHCHECK --interval=2s CMD [\"etcdctl\", \"endpoint\", \"health\"]\nCMD [\"etcd\", \"--data-dir\", \"/data\", \"--listen-client-urls\", \"http://0.0.0.0:2379\", \"--advertise-client-urls\", \"http://127.0.0.1:2379\"]\n",
		load:    []string{"for i in $(seq 20); do curl -fsS -d '{\"key\":\"Zm9v\",\"value\":\"YmFy\"}' http://$S:2379/v3/kv/put; done; curl -fsS -d '{\"key\":\"Zm9v\"}' http://$S:2379/v3/kv/range | grep -q YmFy", "curl -fsS http://$S:2379/metrics | grep -q etcd"},
		operate: []string{"exec etcdctl snapshot save /data/snap", "exec etcdctl compact 5; etcdctl defrag"},
		status:  "any",
	},
	{name: "busybox",
		recipe: "RUN apt-get update && apt-get install -y --no-install-recommends busybox-static && mkdir -p /out/www && echo fine > /out/www/index.html\nFROM scratch\nCOPY --from=0 /bin/busybox /bin/busybox\nCOPY --from=0 /out/www /www\nEXPOSE 8080\nHEALTHCHECK --interval=2s CMD [\"/bin/busybox\", \"wget\", \"-q\", \"-O\", \"/dev/null\", \"http://127.0.0.1:8080/\"]\nENTRYPOINT [\"/bin/busybox\"]\nCMD [\"httpd\", \"-f\", \"-v\", \"-p\", \"8080\", \"-h\", \"/www\"]\n",
		load:   []string{"ab -q -n 300 -c 4 http://$S:8080/"},
		status: "any",
	},
	{name: "tinyproxy",
		recipe: install("tinyproxy-bin curl") + "COPY tinyproxy.conf /etc/tinyproxy/tinyproxy.conf\nRUN useradd -r tinyproxy; mkdir -p /var/log/tinyproxy && chown tinyproxy /var/log/tinyproxy\nEXPOSE 8888\nHEALTHCHECK --interval=2s CMD curl -sS -x http://127.0.0.1:8888 http://tinyproxy.stats/ | grep -qi tinyproxy\nCMD [\"tinyproxy\", \"-d\"]\n",
		files:  map[string]string{"tinyproxy.conf": "User tinyproxy\nGroup tinyproxy\nPort 8888\nTimeout 60\nLogLevel Info\nLogFile \"/var/log/tinyproxy/t.log\"\nStatHost \"tinyproxy.stats\"\nMaxClients 20\n"},
		load:   []string{"for i in $(seq 10); do curl -fsS -x http://$S:8888 http://tinyproxy.stats/ | grep -qi tinyproxy; done"},
		reload: []string{"signal HUP"},
		rotate: []string{"exec mv /var/log/tinyproxy/t.log /var/log/tinyproxy/t.log.1", "signal USR1", "curl -fsS -x http://$S:8888 http://tinyproxy.stats/", "exec test -s /var/log/tinyproxy/t.log"},
	},
	{name: "monit",
		recipe: install("monit curl") + "COPY monitrc /etc/monit/monitrc\nRUN chmod 600 /etc/monit/monitrc\nEXPOSE 2812\nHEALTHCHECK --interval=2s CMD curl -fsS -o /dev/null http://127.0.0.1:2812/ || exit 1\nCMD [\"monit\", \"-I\"]\n",
		files:  map[string]string{"monitrc": "set daemon 1\nset log /var/log/monit.log\nset idfile /var/lib/monit/id\nset statefile /var/lib/monit/state\nset pidfile /run/monit.pid\nset httpd port 2812\n allow 0.0.0.0/0\ncheck filesystem root with path /\ncheck file passwd with path /etc/passwd\n if failed permission 644 then alert\ncheck host self with address 127.0.0.1\n if failed port 2812 then alert\n"},
		load:   []string{"for i in $(seq 5); do curl -fsS http://$S:2812/ | grep -qi monit; done", "curl -fsS http://$S:2812/_status", "sleep 2"},
		reload: []string{"signal HUP", "exec monit -t", "exec monit status"},
		rotate: []string{"exec mv /var/log/monit.log /var/log/monit.log.1", "signal HUP", "sleep 2", "exec test -s /var/log/monit.log"},
	},
	{name: "prometheus",
		recipe: install("prometheus curl") + "COPY prometheus.yml /etc/prometheus/prometheus.yml\nRUN chown -R nobody /var/lib/prometheus\nVOLUME /var/lib/prometheus\nUSER nobody\nWORKDIR /var/lib/prometheus\nEXPOSE 9090\nHEALTHCHECK --interval=2s CMD curl -fsS -o /dev/null http://127.0.0.1:9090/-/ready || exit 1\nENTRYPOINT [\"/usr/bin/prometheus\"]\nCMD [\"--config.file=/etc/prometheus/prometheus.yml\", \"--storage.tsdb.path=/var/lib/prometheus\", \"--web.enable-lifecycle\"]\n",
		files:  map[string]string{"prometheus.yml": "global:\n  scrape_interval: 1s\nscrape_configs:\n- job_name: self\n  static_configs:\n  - targets: ['127.0.0.1:9090']\n"},
		load:   []string{"sleep 2", "curl -fsS \"http://$S:9090/api/v1/query?query=up\" | grep -q success", "ab -q -n 200 -c 4 http://$S:9090/metrics"},
		reload: []string{"signal HUP", "curl -fsS -X POST http://$S:9090/-/reload"},
	},
	{name: "nats",
		recipe: install("nats-server netcat-openbsd curl") + "EXPOSE 4222 8222\nUSER nobody\nHEALTHCHECK --interval=2s CMD curl -fsS -o /dev/null http://127.0.0.1:8222/varz || exit 1\nENTRYPOINT [\"/usr/sbin/nats-server\"]\nCMD [\"-m\", \"8222\", \"-l\", \"/tmp/nats.log\"]\n",
		load:   []string{"printf 'CONNECT {}\\r\\nSUB x 1\\r\\nPUB x 5\\r\\nhello\\r\\nPING\\r\\n' | nc -w 2 $S 4222 | grep -q hello", "curl -fsS http://$S:8222/connz"},
		reload: []string{"signal HUP"},
		rotate: []string{"exec mv /tmp/nats.log /tmp/nats.log.1", "signal USR1", "exec test -s /tmp/nats.log"},
		status: "any",
	},
	{name: "pgbouncer",
		recipe: install("pgbouncer postgresql-client") + "COPY pgbouncer.ini users /etc/pgbouncer/\nRUN mkdir -p /var/log/pgbouncer && chown postgres /var/log/pgbouncer\nUSER postgres\nEXPOSE 6432\nENV PGPASSWORD=secret\nHEALTHCHECK --interval=2s CMD psql -h 127.0.0.1 -p 6432 -U admin pgbouncer -c 'SHOW VERSION'\nCMD [\"pgbouncer\", \"/etc/pgbouncer/pgbouncer.ini\"]\nSTOPSIGNAL SIGINT\n",
		files:  map[string]string{"pgbouncer.ini": "[databases]\n[pgbouncer]\nlisten_addr = 0.0.0.0\nlisten_port = 6432\nauth_type = plain\nauth_file = /etc/pgbouncer/users\nadmin_users = admin\nlogfile = /var/log/pgbouncer/p.log\nunix_socket_dir =\n", "users": "\"admin\" \"secret\"\n"},
		load:   []string{"for i in $(seq 5); do PGPASSWORD=secret psql -h $S -p 6432 -U admin pgbouncer -c 'SHOW CLIENTS'; done"},
		reload: []string{"signal HUP", "PGPASSWORD=secret psql -h $S -p 6432 -U admin pgbouncer -c RELOAD"},
		rotate: []string{"exec mv /var/log/pgbouncer/p.log /var/log/pgbouncer/p.log.1", "signal HUP", "PGPASSWORD=secret psql -h $S -p 6432 -U admin pgbouncer -c 'SHOW CLIENTS'", "exec test -s /var/log/pgbouncer/p.log"},
	},
	{name: "proftpd",
		recipe: install("proftpd-core netcat-openbsd") + "COPY proftpd.conf /etc/proftpd/proftpd.conf\nRUN useradd -m up && echo up:secret | chpasswd && echo hello > /home/up/file && chown up /home/up/file\nVOLUME /home/up\nEXPOSE 21 21000-21005\nHEALTHCHECK --interval=2s CMD printf 'QUIT\\r\\n' | nc -w 2 127.0.0.1 21 | grep -q ^220\nCMD [\"proftpd\", \"--nodaemon\"]\n",
		files:  map[string]string{"proftpd.conf": "ServerType standalone\nPort 21\nUseIPv6 off\nUseReverseDNS off\nPassivePorts 21000 21005\nUser proftpd\nGroup nogroup\nDefaultRoot ~\nRequireValidShell off\nSystemLog /var/log/proftpd/proftpd.log\nTransferLog /var/log/proftpd/xferlog\nAuthPAM on\n"},
		load:   []string{"for i in 1 2 3; do curl -fsS ftp://up:secret@$S/file | grep -q hello; done", "curl -fsS -T /etc/passwd ftp://up:secret@$S/s$(date +%N)", "! curl -fsS ftp://up:wrong@$S/"},
		reload: []string{"signal HUP", "sleep 1"},
		rotate: []string{"exec mv /var/log/proftpd/xferlog /var/log/proftpd/xferlog.1", "signal HUP", "curl -fsS ftp://up:secret@$S/file", "exec test -s /var/log/proftpd/xferlog"},
	},
	{name: "postfix",
		recipe:  install("postfix netcat-openbsd") + "COPY docker-entrypoint.sh /usr/local/bin/\nRUN useradd -m rcpt && postconf -e myhostname=mail.test mydestination=mail.test inet_interfaces=all inet_protocols=ipv4 maillog_file=/dev/stdout smtputf8_enable=no\nVOLUME /var/mail\nENTRYPOINT [\"docker-entrypoint.sh\"]\nEXPOSE 25\nHEALTHCHECK --interval=2s CMD printf 'QUIT\\r\\n' | nc -w 2 127.0.0.1 25 | grep -q ^220\nCMD [\"postfix\", \"start-fg\"]\n",
		files:   map[string]string{"docker-entrypoint.sh": "#!/bin/sh\nset -e\nmkdir -p /var/spool/postfix/etc\ncp /etc/services /etc/resolv.conf /etc/hosts /etc/nsswitch.conf /var/spool/postfix/etc/\nnewaliases\nexec \"$@\"\n"},
		load:    []string{"for i in 1 2 3; do printf 'From: a@b\\nSubject: s\\n\\nbody\\n' | curl -fsS smtp://$S --mail-from a@mail.test --mail-rcpt rcpt@mail.test -T -; done", "! printf 'x\\n' | curl -fsS smtp://$S --mail-from a@mail.test --mail-rcpt nobody.there@mail.test -T -"},
		reload:  []string{"sleep 1", "exec grep -q body /var/mail/rcpt", "exec postfix reload", "sleep 1"},
		operate: []string{"exec postqueue -p", "exec printf 'Subject: local\\n\\nlocal\\n' | sendmail rcpt", "sleep 2", "exec grep -q local /var/mail/rcpt"},
		status:  "any",
	},
	{name: "varnish",
		recipe: install("varnish curl") + "COPY default.vcl /etc/varnish/default.vcl\nCOPY docker-entrypoint.sh /usr/local/bin/\nENTRYPOINT [\"docker-entrypoint.sh\"]\nEXPOSE 80\nWORKDIR /etc/varnish\nHEALTHCHECK --interval=2s CMD curl -fsS -o /dev/null http://127.0.0.1/ || exit 1\nCMD []\n",
		files: map[string]string{
			"docker-entrypoint.sh": "#!/bin/sh\nset -e\nif [ \"$#\" -eq 0 ] || [ \"${1#-}\" != \"$1\" ]; then\n\tset -- varnishd -F -f /etc/varnish/default.vcl -a http=:80,HTTP -s malloc,64m \"$@\"\nfi\nexec \"$@\"\n",
			"default.vcl":          "vcl 4.1;\nimport std;\nbackend default none;\nsub vcl_recv { return (synth(200, \"fine\")); }\nsub vcl_synth { set resp.http.x = std.toupper(\"fine\"); synthetic(\"fine\" + now); return (deliver); }\n"},
		load:    []string{"ab -q -k -l -n 500 -c 8 http://$S/", "curl -fsS http://$S/ | grep -q fine"},
		operate: []string{"exec varnishadm status", "exec varnishadm vcl.load two /etc/varnish/default.vcl", "exec varnishadm vcl.use two", "curl -fsS http://$S/ | grep -q fine", "exec varnishadm vcl.discard boot", "exec varnishstat -1 | grep -q MAIN.uptime"},
		status:  "any",
	},
	{name: "sshd",
		recipe: install("openssh-server netcat-openbsd") + "RUN mkdir -p /run/sshd /etc/ssh/keys && useradd -m -s /bin/bash up && echo up:secret | chpasswd && sed -i 's,^#HostKey /etc/ssh/ssh_host_ed.*,HostKey /etc/ssh/keys/ssh_host_ed25519_key,' /etc/ssh/sshd_config && rm -f /etc/ssh/ssh_host_*\nVOLUME /home/up /etc/ssh/keys\n" + through + "EXPOSE 22\nHEALTHCHECK --interval=2s CMD nc -w 1 127.0.0.1 22 </dev/null | grep -q SSH\nCMD [\"/usr/sbin/sshd\", \"-D\", \"-e\"]\n",
		files:  entry("[ -f /etc/ssh/keys/ssh_host_ed25519_key ] || ssh-keygen -q -t ed25519 -f /etc/ssh/keys/ssh_host_ed25519_key -N ''\nmkdir -p /run/sshd\nexec \"$@\"\n"),
		load: []string{"for i in 1 2 3; do SSHPASS=secret sshpass -e ssh -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null up@$S 'id -un; uname -a; ls -la /; ps ax 2>/dev/null; for f in /etc/*; do wc -c $f; done 2>/dev/null | sort -n | tail -3; awk \"BEGIN{print 1}\"; tar cf - /etc/passwd | gzip | wc -c' | grep -q ^up; done",
			"printf 'id\\nperl -e \"print 1\"\\nexit\\n' | SSHPASS=secret sshpass -e ssh -tt -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null up@$S | grep -q uid=",
			"echo 'put /etc/passwd s\nget s /tmp/got\nrm s' > /tmp/b; SSHPASS=secret sshpass -e sftp -o StrictHostKeyChecking=no -o BatchMode=no -o UserKnownHostsFile=/dev/null -b /tmp/b up@$S",
			"SSHPASS=secret sshpass -e scp -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -O /etc/passwd up@$S:/home/up/x"},
		reload: []string{"signal HUP", "sleep 1"},
	},
	{name: "supervisord",
		recipe: install("supervisor nginx-light php-fpm curl") + "COPY app.conf /etc/supervisor/conf.d/app.conf\nCOPY default /etc/nginx/sites-available/default\nCOPY index.php /var/www/html/\nRUN mkdir -p /run/php\nEXPOSE 80\nHEALTHCHECK --interval=2s CMD curl -fsS http://127.0.0.1/index.php | grep -q fine\nCMD [\"/usr/bin/supervisord\", \"-n\", \"-c\", \"/etc/supervisor/supervisord.conf\"]\n",
		files: map[string]string{
			"app.conf":  "[program:nginx]\ncommand=/usr/sbin/nginx -g 'daemon off;'\nautorestart=true\n[program:php-fpm]\ncommand=php-fpm8.2 -F\nautorestart=true\n[program:ticker]\ncommand=/bin/sh -c \"while :; do date > /tmp/tick; sleep 1; done\"\n",
			"default":   "server {\n listen 80;\n root /var/www/html;\n location ~ \\.php$ { include snippets/fastcgi-php.conf; fastcgi_pass unix:/run/php/php8.2-fpm.sock; }\n}\n",
			"index.php": "<?php echo 'fine ', strlen(serialize(range(1, 1000)));\n"},
		load:    []string{"ab -q -n 200 -c 4 http://$S/index.php"},
		reload:  []string{"signal HUP", "sleep 2"},
		rotate:  []string{"signal USR2"},
		operate: []string{"exec supervisorctl status", "exec supervisorctl restart nginx", "exec supervisorctl restart php-fpm", "sleep 2"},
	},
	{name: "home",
		recipe: install("busybox curl gcc libc6-dev") + "RUN useradd -m app && echo 'int main(){return 0;}' > /t.c && gcc -o /home/app/tool /t.c\nCOPY --chown=app run.sh /home/app/run.sh\nRUN chmod 755 /home/app/run.sh && chown -R app /home/app\nUSER app\nWORKDIR /home/app\nEXPOSE 8080\nSTOPSIGNAL SIGKILL\nHEALTHCHECK --interval=2s CMD curl -fsS -o /dev/null http://127.0.0.1:8080/run.sh || exit 1\nCMD [\"./run.sh\"]\n",
		files:  map[string]string{"run.sh": "#!/bin/sh\n./tool || exit 1\nexec busybox httpd -f -p 8080 -h /home/app\n"},
		load:   []string{"ab -q -n 100 -c 4 http://$S:8080/run.sh"},
		status: "any",
	},
	{name: "runit",
		recipe:  install("runit busybox curl") + "COPY web/run /etc/service/web/run\nCOPY web/log/run /etc/service/web/log/run\nRUN chmod 755 /etc/service/web/run /etc/service/web/log/run && mkdir -p /var/log/web /srv/www && echo fine > /srv/www/index.html\nEXPOSE 8080\nHEALTHCHECK --interval=2s CMD curl -fsS -o /dev/null http://127.0.0.1:8080/ || exit 1\nCMD [\"runsvdir\", \"-P\", \"/etc/service\"]\n",
		files:   map[string]string{"web/run": "#!/bin/sh\nexec 2>&1\nexec busybox httpd -f -v -p 8080 -h /srv/www\n", "web/log/run": "#!/bin/sh\nexec svlogd -tt /var/log/web\n"},
		load:    []string{"ab -q -n 100 -c 4 http://$S:8080/"},
		operate: []string{"exec sv status /etc/service/web", "exec sv restart /etc/service/web", "sleep 2", "exec sv hup /etc/service/web/log"},
		status:  "any",
	},
	{name: "samba",
		recipe:  install("samba smbclient") + "COPY smb.conf /etc/samba/smb.conf\nRUN useradd -M up && printf 's\\ns\\n' | smbpasswd -s -a up && mkdir /srv/share && chown up /srv/share\nVOLUME /srv/share /var/lib/samba\nEXPOSE 445\nHEALTHCHECK --interval=3s CMD smbclient -L 127.0.0.1 -N\nCMD [\"smbd\", \"-F\", \"--no-process-group\", \"--debug-stdout\"]\n",
		files:   map[string]string{"smb.conf": "[global]\nserver role = standalone server\nmap to guest = bad user\nlog file = /var/log/samba/log.%m\n[share]\npath = /srv/share\nread only = no\n"},
		load:    []string{"true"},
		reload:  []string{"exec smbclient //127.0.0.1/share -U up%s -c 'put /etc/passwd p; ls; get p /tmp/p; rm p'", "signal HUP"},
		operate: []string{"exec smbstatus -b"},
		status:  "any",
	},
	{name: "celery",
		recipe: install("celery redis-server python3-redis redis-tools") + "COPY tasks.py docker-entrypoint.sh /app/\nWORKDIR /app\nENV PYTHONDONTWRITEBYTECODE=1\nVOLUME /data\nENTRYPOINT [\"/app/docker-entrypoint.sh\"]\nEXPOSE 6379\nHEALTHCHECK --interval=3s CMD celery -A tasks inspect ping -t 5 | grep -q pong\nCMD [\"celery\", \"-A\", \"tasks\", \"worker\", \"-B\", \"-s\", \"/data/beat\", \"-c\", \"2\", \"-l\", \"info\"]\n",
		files: map[string]string{"docker-entrypoint.sh": "#!/bin/sh\nset -e\nredis-server --bind 0.0.0.0 --protected-mode no --dir /data --daemonize yes\nexec \"$@\"\n",
			"tasks.py": "import subprocess, hashlib\nfrom celery import Celery\napp = Celery('tasks', broker='redis://127.0.0.1/0', backend='redis://127.0.0.1/1')\napp.conf.beat_schedule = {'a': {'task': 'tasks.add', 'schedule': 1.0, 'args': (1, 2)}}\n@app.task(name='tasks.add')\ndef add(x, y):\n    hashlib.sha256(b'x').hexdigest()\n    return x + y\n"},
		load:   []string{"sleep 3", "redis-cli -h $S -n 1 keys '*' | grep -q celery-task-meta"},
		status: "any",
	},
	{name: "redis-sentinel",
		recipe: install("redis-sentinel redis-server redis-tools") + "COPY sentinel.conf /data/sentinel.conf\nCOPY notify.sh /usr/local/bin/notify.sh\nRUN chown -R redis /data\nVOLUME /data\nUSER redis\nEXPOSE 26379\nHEALTHCHECK --interval=2s CMD [\"redis-cli\", \"-p\", \"26379\", \"ping\"]\nCMD [\"redis-sentinel\", \"/data/sentinel.conf\"]\n",
		files:  map[string]string{"sentinel.conf": "bind 0.0.0.0\nprotected-mode no\nport 26379\ndir /data\nsentinel monitor m 127.0.0.1 6379 1\nsentinel down-after-milliseconds m 1000\nsentinel notification-script m /usr/local/bin/notify.sh\n", "notify.sh": "#!/bin/sh\necho \"$@\" >> /tmp/notified\n"},
		load:   []string{"redis-cli -h $S -p 26379 sentinel masters | grep -q down", "redis-cli -h $S -p 26379 sentinel flushconfig"},
		reload: []string{"sleep 2", "exec test -s /tmp/notified"},
	},
}
